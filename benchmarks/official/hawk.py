"""HAWK: github.com/peppery77/HAWK, compute_hawk_scores and select_keep_indices of src/hawk/pruning.py.

On random queries of 7 text tokens and random keys, with the published weights of 28 heads.
"""

from pathlib import Path

import torch
from torch import Tensor

from benchmarks.official.comparison import NUM_TOKENS, compare, function_of, square_tokens
from tops_engine.methods.hawk import HAWK, QWEN2_5_VL_7B

FILE, HEAD_SIZE = "src/hawk/pruning.py", 16


def inputs(seed: int) -> tuple[Tensor, Tensor]:
    """Return queries [1, heads, 7, size] and keys [1, heads, n, size]."""
    generator = torch.Generator().manual_seed(seed)
    heads = len(QWEN2_5_VL_7B)
    queries = torch.randn(1, heads, 7, HEAD_SIZE, generator=generator)
    return queries, torch.randn(1, heads, NUM_TOKENS, HEAD_SIZE, generator=generator)


def official(checkout: Path, seed: int, count: int) -> list[int]:
    score = function_of(checkout, FILE, "compute_hawk_scores")
    select = function_of(checkout, FILE, "select_keep_indices")
    scores = score(*inputs(seed), torch.tensor(QWEN2_5_VL_7B))
    _, selected = select(torch.arange(NUM_TOKENS), scores, NUM_TOKENS, count / NUM_TOKENS)
    kept: list[int] = selected.tolist()
    return kept


def ours(seed: int, count: int) -> list[int]:
    queries, keys = inputs(seed)
    products = (keys[0] @ queries[0].mean(dim=1)[:, :, None])[..., 0].T / HEAD_SIZE**0.5
    (selection,) = HAWK().select_visual([square_tokens(keys[0, 0], question_products=products)], [count])
    kept: list[int] = selection.indices.tolist()
    return kept


if __name__ == "__main__":
    compare(__doc__, official, ours)
