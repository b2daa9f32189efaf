"""HiPrune: github.com/Danielement321/HiPrune, LlavaMetaForCausalLM.encode_images of LLaVA.

No anchor lies at the border of the picture, where the official code takes patches of other rows for neighbours.
"""

import os
import types
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.official.comparison import NUM_TOKENS, compare, function_of, model_with, square_tokens
from tops_engine.methods.hiprune import HiPrune

SIDE = 24


def inputs(seed: int) -> tuple[Tensor, list[Tensor]]:
    """Return vision features, and for each of 24 layers the attention of 2 heads, [CLS] first."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(1, NUM_TOKENS, 8, generator=generator)
    columns = torch.randn(24, 1, 2, 1, NUM_TOKENS + 1, generator=generator)
    place = torch.arange(NUM_TOKENS)
    at_border = (place % SIDE == 0) | (place % SIDE == SIDE - 1) | (place < SIDE) | (place >= NUM_TOKENS - SIDE)
    columns[8, ..., 1:][..., at_border] = -10
    return features, list(columns.expand(-1, -1, -1, NUM_TOKENS + 1, -1).softmax(dim=-1))


def official(checkout: Path, seed: int, count: int) -> list[int]:
    settings = {"HIPRUNE_RETENTION": str(count), "HIPRUNE_OBJECT_LAYER": "9", "HIPRUNE_ALPHA": "0.1"}
    file = "LLaVA/llava/model/llava_arch.py"
    encode = function_of(checkout, file, "LlavaMetaForCausalLM.encode_images", os=os)
    features, attentions = inputs(seed)
    model = model_with(features, attentions)
    model.config = types.SimpleNamespace(mm_vision_select_layer=-2)
    os.environ.update(settings)
    # The code moves attention to the GPU, where there may be none.
    torch.Tensor.cuda = lambda tensor: tensor  # type: ignore[method-assign,assignment,misc]
    kept: list[int] = encode(model, None)[1][0].nonzero().flatten().tolist()
    return kept


def ours(seed: int, count: int) -> list[int]:
    features, attentions = inputs(seed)
    received = [attentions[layer][0].mean(dim=(0, 1))[1:] for layer in (-2, 8)]
    image = square_tokens(features[0], received_attention=received[0], middle_attention=received[1])
    (selection,) = HiPrune().select_visual([image], [count])
    kept: list[int] = selection.indices.tolist()
    return kept


if __name__ == "__main__":
    compare(__doc__, official, ours)
