"""Greedy selection on the CPU, one image at a time.

A step is two dozen operations on vectors of N numbers, which take little longer than calling them does. So this is
numpy, whose calls cost a fraction of torch's; and coverage changes only by the tokens that found a closer one.
"""

from math import inf
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from tops_engine.selection.greedy import Objective

Array = npt.NDArray[Any]

# Rows of the similarity matrix worked on at once: they stay in the processor's cache.
BLOCK = 64


class Covered:
    """How well the selected tokens cover the others, and what each token would add to that.

    Parameters
    ----------
    similarity : float32 or float64 [N, N], symmetric, at most 1.
    closest : same dtype [N], each token's similarity to the closest selected one.

    Attributes
    ----------
    closest : as above; 1 for selected tokens, which then gain nothing by being covered.
    gain : float64 [N], c of :mod:`tops_engine.selection.greedy`. In float64, because steps subtract from it until
        little is left; the rounding would then be all that counts.
    """

    def __init__(self, similarity: Array, closest: Array) -> None:
        self._similarity = similarity
        self.closest = closest
        # max(0, sim - closest) = max(sim, closest) - closest
        blocks = [similarity[start : start + BLOCK] for start in range(0, len(similarity), BLOCK)]
        sums = [np.maximum(block, closest).sum(axis=1, dtype=np.float64) for block in blocks]
        self.gain = np.concatenate(sums) - closest.sum(dtype=np.float64)

    def add(self, token: int) -> None:
        """Note that ``token`` is selected now."""
        row = self._similarity[token].copy()
        row[token] = 1
        changed = np.flatnonzero(row > self.closest)
        before, after = self.closest[changed, None], row[changed, None]
        # Columns of the matrix, which as rows lie together in memory.
        covered = self._similarity[changed]
        np.clip(covered, before, after, out=covered)
        self.gain -= np.add.reduce(covered, axis=0, dtype=np.float64) - before.sum(dtype=np.float64)
        self.closest[changed] = row[changed]


def best_of(score: Array, rounding: float) -> int:
    """The lowest index among the maxima, where scores that differ by less than rounding tie."""
    top = score.max()
    return int((score >= top - rounding * max(1.0, abs(top))).argmax())


def select_on_host(
    similarity: Array, relevance: Array | None, num_keep: int, objective: "Objective", rounding: float
) -> list[int]:
    """Choose ``num_keep`` of N tokens as :func:`tops_engine.selection.greedy_select` does.

    Parameters
    ----------
    similarity : float32 or float64 [N, N].
    relevance : float64 [N], at most 1 in size; it is changed.
    rounding : what similarities may be off by.
    """
    num_tokens = len(similarity)
    noise = rounding * num_tokens
    covers = objective.coverage_weight > 0
    barred = np.zeros(num_tokens)  # -inf where a token is selected
    if relevance is not None:
        best = int(relevance.argmax())
    else:
        nothing = np.zeros_like(similarity[0])
        terms = [(objective.diversity_weight, 1 - nothing, rounding)]
        terms += [(objective.coverage_weight, Covered(similarity, nothing).gain, noise)] if covers else []
        best = best_of(_score(terms, barred, objective.normalization, num_tokens), rounding)
    order = [best]
    closest = similarity[best].copy()
    closest[best] = 1
    covered = Covered(similarity, closest) if covers else None
    while len(order) < num_keep:
        barred[best] = -inf
        terms = [(objective.diversity_weight, 1 - closest, rounding)]
        if relevance is not None:
            relevance[best] = 0
            terms.append((1.0, relevance, 0.0))
        if covered is not None:
            covered.gain[best] = 0
            terms.append((objective.coverage_weight, covered.gain, noise))
        best = best_of(_score(terms, barred, objective.normalization, num_tokens - len(order)), rounding)
        order.append(best)
        if covered is not None:
            covered.add(best)
        else:
            np.maximum(closest, similarity[best], out=closest)
            closest[best] = 1
    return order


def _score(terms: list[tuple[float, Array, float]], barred: Array, normalization: str, num_left: int) -> Array:
    """The weighted sum of criteria, each brought to one scale over the tokens left; -inf for the others.

    Parameters
    ----------
    terms : weight, values [N] (0 for the tokens selected) and the noise up to which a value counts as 0, of each.
    """
    score = barred.copy()
    for weight, values, noise in terms:
        if not weight:
            continue
        if noise:
            # Otherwise rounding would be scaled up once nothing is left to gain.
            values = values * (values > noise)
        if normalization == "minmax":
            left = values[barred == 0]
            low, span = left.min(), left.max() - left.min()
            if span > noise:
                score += (values - low) * (weight / span)
        else:
            # Only relevance, which has no noise, may be negative.
            total = (values if noise else np.abs(values)).sum(dtype=np.float64)
            if total:
                score += values * (weight * num_left / total)
    return score
