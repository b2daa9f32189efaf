"""VisPruner: github.com/Theia-4869/VisPruner, LlavaMetaForCausalLM.encode_images."""

from pathlib import Path

import torch
from torch import Tensor

from benchmarks.official.comparison import NUM_TOKENS, compare, function_of, model_with, square_tokens
from tops_engine.methods.vispruner import VisPruner


def inputs(seed: int) -> tuple[Tensor, Tensor]:
    """Return vision features and the attention of [CLS] of each head, in float64, where rounding makes no ties."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(1, NUM_TOKENS, 64, generator=generator, dtype=torch.float64)
    return features, torch.randn(1, 4, NUM_TOKENS, generator=generator).exp()


def official(checkout: Path, seed: int, count: int) -> list[int]:
    encode = function_of(checkout, "llava/model/llava_arch.py", "LlavaMetaForCausalLM.encode_images")
    model = model_with(*inputs(seed), get_visual_token_num=count, get_important_ratio=0.5)
    kept: list[int] = encode(model, None)[1][0].nonzero().flatten().tolist()
    return kept


def ours(seed: int, count: int) -> list[int]:
    features, attentions = inputs(seed)
    image = square_tokens(features[0], vision_attention=attentions[0].mean(dim=0))
    (selection,) = VisPruner().select_visual([image], [count])
    kept: list[int] = selection.indices.tolist()
    return kept


if __name__ == "__main__":
    compare(__doc__, official, ours)
