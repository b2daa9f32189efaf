"""HoloV: github.com/obananas/HoloV, the function HoloV of LLaVA. Tokens are found again by their values."""

from pathlib import Path

import torch
from torch import Tensor

from benchmarks.official.comparison import NUM_TOKENS, compare, function_of, square_tokens
from tops_engine.methods.holov import HoloV


def inputs(seed: int) -> tuple[Tensor, Tensor]:
    """Return projected tokens and the attention of [CLS]."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(NUM_TOKENS, 48, generator=generator)
    return features, torch.randn(NUM_TOKENS, generator=generator).softmax(dim=0)


def official(checkout: Path, seed: int, count: int) -> list[int]:
    choose = function_of(checkout, "llava/model/utils.py", "HoloV")
    features, attention = inputs(seed)
    kept = choose(features[None], attention[None], num_patches=16, new_image_token_num=count)[0]
    return [int((features == token).all(dim=1).nonzero()[0, 0]) for token in kept if token.any()]


def ours(seed: int, count: int) -> list[int]:
    features, attention = inputs(seed)
    (selection,) = HoloV().select_visual([square_tokens(features, vision_attention=attention)], [count])
    kept: list[int] = selection.indices.tolist()
    return kept


if __name__ == "__main__":
    compare(__doc__, official, ours)
