"""VisionTrim: github.com/hanxunyu/VisionTrim, build_token_affinity and combine_importance of its CLIP tower.

These choose the dominant patches; the code replaces their result, and our docstring says so. What follows for groups is
part of one long function of the code and is compared with its formulas in the tests.
"""

from pathlib import Path

import torch
from torch import Tensor

from benchmarks.official.comparison import NUM_TOKENS, compare, function_of, square_tokens
from tops_engine.methods.visiontrim import VisionTrim

FILE = "llava/model/multimodal_encoder/clip_encoder.py"


def inputs(seed: int) -> tuple[Tensor, Tensor]:
    """Return vision features [n, 8], and the attention of [CLS], [n]."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(NUM_TOKENS, 8, generator=generator)
    return features, torch.randn(NUM_TOKENS, generator=generator).softmax(dim=0)


def official(checkout: Path, seed: int, count: int) -> list[int]:
    # The code moves tensors to the GPU, where there may be none.
    torch.Tensor.cuda = lambda tensor: tensor  # type: ignore[method-assign,assignment,misc]
    features, attention = inputs(seed)
    local = function_of(checkout, FILE, "build_token_affinity")(features[None])
    scores = function_of(checkout, FILE, "combine_importance")(attention[None], local, method="adaptive")
    kept: list[int] = scores[0].topk(count).indices.tolist()
    return kept


def ours(seed: int, count: int) -> list[int]:
    features, attention = inputs(seed)
    image = square_tokens(features, vision_attention=attention)
    (selection,) = VisionTrim(complement=0).select_visual([image], [count])
    kept: list[int] = selection.indices.tolist()
    return kept


if __name__ == "__main__":
    compare(__doc__, official, ours)
