"""Divide a budget among pictures by how much of each picture a number of its tokens stands for.

Every rule gives a picture a curve: the share of the picture that its first k tokens stand for, for each k. The budget
goes token by token to the picture with the smallest share so far, which ends with equal shares for all pictures.
"""

import heapq
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tops_engine.selection.greedy import greedy_select
from tops_engine.selection.similarity import cosine_similarity


@torch.no_grad()
def coverage_curve(features: Tensor, most: int) -> list[float]:
    """Return the share of a picture's tokens that k of them cover, for k from 1 to ``most``.

    The tokens are chosen greedily by coverage alone (TOPS, arXiv 2606.27161). A token is covered by its largest cosine
    similarity with a chosen one, 0 if that is negative; the share is the mean over all tokens.

    Parameters
    ----------
    features : [n, d]
    """
    order = greedy_select(features[None], None, most, use_relevance=False, diversity_weight=0, coverage_weight=1)[0]
    rows = cosine_similarity(features[None])[0][order]
    curve: list[float] = rows.clamp_min(0).cummax(dim=0).values.double().mean(dim=1).tolist()
    return curve


@torch.no_grad()
def spectral_curve(features: Tensor, most: int) -> list[float]:
    """Return the share of a picture's energy in its k largest singular values, for k from 1 to ``most``.

    The energy is the sum of the squares of the singular values of the tokens, each scaled to length 1. That a share of
    this energy sets the budget is the idea of E-AdaPrune (arXiv 2603.05950, abstract); what is written here is ours.

    Parameters
    ----------
    features : [n, d]
    """
    energy = _energies(features)
    shares = energy.cumsum(0) / energy.sum().clamp_min(torch.finfo(energy.dtype).tiny)
    curve: list[float] = shares[:most].tolist()
    return curve + [1.0] * (most - len(curve))


@torch.no_grad()
def rank_curve(features: Tensor, most: int) -> list[float]:
    """Return k as a share of a picture's effective rank, for k from 1 to ``most``; it may exceed 1.

    The effective rank is the exponential of the entropy of the singular values as shares of their sum, of the tokens
    scaled to length 1. Budgets in proportion to it are equal shares.

    Parameters
    ----------
    features : [n, d]
    """
    values = _energies(features).sqrt()
    shares = values / values.sum().clamp_min(torch.finfo(values.dtype).tiny)
    rank = float(torch.special.entr(shares).sum().exp())
    return [k / rank for k in range(1, most + 1)]


#: The curves by the names that users write.
CURVES: dict[str, Callable[[Tensor, int], list[float]]] = {
    "coverage": coverage_curve,
    "erank": rank_curve,
    "spectral": spectral_curve,
}


def allocate(curves: Sequence[Sequence[float]], total: int, least: Sequence[int]) -> list[int]:
    """Divide ``total`` tokens among pictures.

    Each picture first gets its ``least``. Every further token goes to the picture with the smallest share so far, of
    equal ones to the first.

    Parameters
    ----------
    curves : for each picture the shares of 1, 2, ... tokens, never falling; as many as it may have.
    total : brought into the range that ``least`` and the lengths of the curves allow.
    least : of each picture, from 1 to the length of its curve.
    """
    counts = list(least)
    rest = min(total, sum(map(len, curves))) - sum(counts)
    waiting = [(curve[count - 1], number) for number, (curve, count) in enumerate(zip(curves, counts, strict=True))]
    heap = [entry for entry in waiting if counts[entry[1]] < len(curves[entry[1]])]
    heapq.heapify(heap)
    for _ in range(rest):
        _, number = heapq.heappop(heap)
        counts[number] += 1
        if counts[number] < len(curves[number]):
            heapq.heappush(heap, (curves[number][counts[number] - 1], number))
    return counts


def with_least(
    order: Sequence[int], sizes: Sequence[int], least: Sequence[int], own_order: Callable[[int], Sequence[int]]
) -> list[int]:
    """Return a joint selection, changed so that each picture has at least its ``least`` tokens.

    Where a picture has fewer, the tokens that were chosen last give way to the first of its own order. Tokens of
    pictures that would then have too few do not give way.

    Parameters
    ----------
    order : the chosen tokens in the order in which they were chosen, at least as many as the sum of ``least``.
    sizes : the number of tokens of each picture; tokens are numbered through.
    own_order : gives the first ``least`` tokens of a picture as they are chosen from it alone, numbered through.
    """
    owner = [number for number, size in enumerate(sizes) for _ in range(size)]
    counts = [0] * len(sizes)
    for token in order:
        counts[owner[token]] += 1
    lacking = [number for number, count in enumerate(counts) if count < least[number]]
    num_missing = sum(least[number] - counts[number] for number in lacking)
    dropped: set[int] = set()
    for token in reversed(order):
        if len(dropped) < num_missing and counts[owner[token]] > least[owner[token]]:
            counts[owner[token]] -= 1
            dropped.add(token)
    kept = [token for token in order if token not in dropped]
    for number in lacking:
        new = [token for token in own_order(number) if token not in kept]
        kept += new[: least[number] - counts[number]]
    return kept


def _energies(features: Tensor) -> Tensor:
    """Return the squares of the singular values of tokens scaled to length 1, float64, the largest first."""
    similarity = cosine_similarity(features[None])[0].double()
    energies: Tensor = torch.linalg.eigvalsh(similarity).flip(0).clamp_min(0)
    return energies
