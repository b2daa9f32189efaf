"""MMTok: github.com/Ironieser/MMTok, SemanticTokenSelector.mm_coverage_selection without its compiled form."""

import os
import types
import typing
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.official.comparison import NUM_TOKENS, compare, function_of, square_tokens
from tops_engine.methods import VisualTokens
from tops_engine.methods.mmtok import MMTok

FILE, CLASS = "mmtok/core/semantic_selector.py", "SemanticTokenSelector"


def inputs(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the embeddings of the words, projected tokens and vision features."""
    generator = torch.Generator().manual_seed(seed)
    shapes = (9, 48), (NUM_TOKENS, 48), (NUM_TOKENS, 64)
    words, projected, vision = (torch.randn(*shape, generator=generator) for shape in shapes)
    return words, projected, vision


def official(checkout: Path, seed: int, count: int) -> list[int]:
    os.environ.update(MMTok_JIT_N_THRESHOLD="1000000", MMTok_JIT_K_MAX_THRESHOLD="1000000")
    names = {"os": os, "List": list, "Optional": typing.Optional, "Tuple": tuple}
    select = function_of(checkout, FILE, f"{CLASS}.mm_coverage_selection", **names)
    normalize = function_of(checkout, FILE, f"{CLASS}._l2_normalize")
    selector = types.SimpleNamespace(target_vision_tokens=count, alpha=0.5, _l2_normalize=normalize)
    kept: list[int] = select(selector, *inputs(seed), tv_temp=0.02, vv_temp=0.2)[0]
    return kept


def ours(seed: int, count: int) -> list[int]:
    words, projected, vision = inputs(seed)
    image = square_tokens(projected, encoder_features=vision)
    image = VisualTokens(**vars(image) | {"question_embeddings": lambda: words})
    (selection,) = MMTok().select_visual([image], [count])
    kept: list[int] = selection.indices.tolist()
    return kept


if __name__ == "__main__":
    compare(__doc__, official, ours)
