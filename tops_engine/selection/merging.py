"""Merging tokens: averages and sums that replace dropped tokens."""

import math

import torch
from torch import Tensor

from tops_engine.selection.coverage import first_argmax

# The largest ratio of the sides of a pooled grid's cells; beyond it the rows get unequal numbers of cells instead.
MOST_STRETCHED = 2.0


def top_tokens(scores: Tensor, num_keep: int) -> Tensor:
    """Return the indices of the largest ``scores`` [n], largest first, ties to the lowest index: int64 [num_keep]."""
    return scores.argsort(descending=True, stable=True)[:num_keep]


def others(tokens: Tensor, size: int) -> Tensor:
    """Return which of 0 .. size - 1 are not among ``tokens``: int64, ascending."""
    free = torch.ones(size, dtype=torch.bool, device=tokens.device)
    free[tokens] = False
    return free.nonzero().flatten()


def merge_into_targets(features: Tensor, keys: Tensor, num_targets: int) -> tuple[Tensor, Tensor]:
    """Merge tokens into evenly spaced targets, each into the target with the most similar key (VisionZip).

    The targets are tokens 0, s, 2 s ... with s = n // num_targets. A merged token is the target plus the mean of the
    tokens merged into it, so its vector is about twice as long, as in the source (arXiv 2412.04467).

    Parameters
    ----------
    features : float [n, c].
    keys : float [n, k], compared by cosine similarity.
    num_targets : 0 to n.

    Returns
    -------
    The targets, int64 [num_targets], and the merged features [num_targets, c].
    """
    step = len(features) // max(num_targets, 1)
    targets = step * torch.arange(num_targets, device=features.device)
    if not num_targets:
        return targets, features[targets]
    joining = others(targets, len(features))
    unit = torch.nn.functional.normalize(keys, dim=-1)
    nearest = first_argmax(unit[joining] @ unit[targets].mT)[:, 0]
    sums = torch.zeros_like(features[targets]).index_add_(0, nearest, features[joining])
    counts = nearest.bincount(minlength=num_targets).clamp_min(1)
    return targets, features[targets] + sums / counts[:, None]


def fold_dropped(features: Tensor, shown: Tensor, kept: Tensor, kept_features: Tensor) -> Tensor:
    """Average each kept token with the dropped tokens that are most similar to it.

    A dropped token joins the kept one with the largest cosine similarity of ``features``, ties to the first. Tokens
    that show no part of the picture neither join nor are joined. The host does not wait for an accelerator.

    Parameters
    ----------
    features : float [n, d], all tokens.
    shown : bool [n], False for newline tokens and the like.
    kept : int64 [k], the tokens that are kept.
    kept_features : [k, d], their features, which may differ from those in ``features`` where a method merges itself.

    Returns
    -------
    [k, d], dtype of ``kept_features``.
    """
    values = features.float()
    unit = torch.nn.functional.normalize(values, dim=-1)
    targets = shown[kept]
    similarity = (unit @ unit[kept].mT).masked_fill(~targets, -torch.inf)
    joins = (shown & targets.any()).index_fill(0, kept, False)
    place = torch.arange(len(kept), device=kept.device)
    member = ((first_argmax(similarity)[:, 0] == place[:, None]) & joins).float()
    sums = kept_features.float() + member @ values
    return (sums / (1 + member.sum(dim=1, keepdim=True))).to(kept_features.dtype)


def merge_neighbours(
    features: Tensor, keys: Tensor, weights: Tensor, tokens: Tensor, num_neighbours: int = 32
) -> Tensor:
    """Add to each of ``tokens`` the weighted tokens with the most similar keys (PruMerge, arXiv 2403.15388).

    The result is ``x_i + sum_j w_j x_j`` over the nearest of all other tokens, including those in ``tokens``, by cosine
    similarity of keys; the weights are not normalised.

    Parameters
    ----------
    features : float [n, c].
    keys : float [n, k].
    weights : float [n].
    tokens : int64 [m].

    Returns
    -------
    [m, c]
    """
    unit = torch.nn.functional.normalize(keys, dim=-1)
    similarity = (unit[tokens] @ unit.mT).scatter_(1, tokens[:, None], -torch.inf)
    nearest = similarity.argsort(dim=1, descending=True, stable=True)[:, : min(num_neighbours, len(features) - 1)]
    mixture = torch.zeros_like(similarity).scatter_(1, nearest, weights[nearest])
    return features[tokens] + mixture @ features


def pooled_rows(rows: int, columns: int, count: int) -> list[int]:
    """Return the number of cells in each row of a pooled grid with ``count`` cells in total.

    All rows have the same number if there is a rectangle whose cells are not stretched more than ``MOST_STRETCHED``.
    Of several, the one with the squarest cells is taken, then the one with fewer rows. Otherwise the numbers of cells
    differ by at most one between rows.

    Parameters
    ----------
    rows, columns : of the grid.
    count : 1 to rows * columns.
    """

    def stretch(height: int) -> float:
        return abs(math.log(rows / height * (count / height) / columns))

    heights = [height for height in range(1, rows + 1) if count % height == 0 and count // height <= columns]
    best = min(heights, key=stretch, default=0)
    if best and stretch(best) <= math.log(MOST_STRETCHED) + 1e-9:
        return [count // best] * best
    height = round(math.sqrt(count * rows / columns))
    height = min(max(height, -(-count // columns), 1), rows, count)
    return [(row + 1) * count // height - row * count // height for row in range(height)]


def pool_grid(grid: Tensor, cells: list[int]) -> tuple[Tensor, Tensor]:
    """Average a grid of tokens into fewer tokens.

    Bins are those of adaptive pooling: from floor(i n / m) to ceil((i + 1) n / m), first in rows and then, for each row
    of cells, in columns.

    Parameters
    ----------
    grid : float [rows, columns, d].
    cells : the result of :func:`pooled_rows`.

    Returns
    -------
    The averages [sum(cells), d] in raster order, and the token in the middle of each cell: int64, ascending.
    """
    rows, columns = grid.shape[:2]
    pooled, middles = [], []
    for (top, bottom), number in zip(_bins(rows, len(cells)), cells, strict=True):
        band = grid[top:bottom].mean(dim=0)
        pooled.append(torch.nn.functional.adaptive_avg_pool1d(band.mT[None], number)[0].mT)
        middle = (top + bottom - 1) // 2 * columns
        middles += [middle + (left + right - 1) // 2 for left, right in _bins(columns, number)]
    return torch.cat(pooled), torch.tensor(middles, device=grid.device)


def _bins(size: int, number: int) -> list[tuple[int, int]]:
    return [(index * size // number, -(-(index + 1) * size // number)) for index in range(number)]
