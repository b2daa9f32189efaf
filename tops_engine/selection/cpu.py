"""Greedy selection on the CPU with numpy, one image at a time.

A step is two dozen operations on vectors of N numbers, and most of their time is the cost of the calls. numpy's calls
cost a fraction of torch's. Coverage is updated only for the tokens whose closest selected token changed.
"""

from math import inf
from typing import Any

import numpy as np
import numpy.typing as npt

from tops_engine.selection.objective import Objective

Array = npt.NDArray[Any]

# Rows of the similarity matrix that are processed at once; they fit into the processor's cache.
BLOCK = 64


class Covered:
    """How well the selected tokens cover the others, and how much each token would add.

    Parameters
    ----------
    similarity : float32 or float64 [N, N], symmetric, at most 1.
    closest : same dtype [N], each token's similarity to the closest selected one.

    Attributes
    ----------
    closest : as above; 1 for selected tokens, so that covering them adds nothing.
    gain : float64 [N], c of :mod:`tops_engine.selection.greedy`. It is float64 because each step subtracts from it;
        in float32 the rest would be mostly rounding error after many steps.
    """

    def __init__(self, similarity: Array, closest: Array) -> None:
        self._similarity = similarity
        self.closest = closest
        # max(0, sim - closest) = max(sim, closest) - closest
        blocks = [similarity[start : start + BLOCK] for start in range(0, len(similarity), BLOCK)]
        sums = [np.maximum(block, closest).sum(axis=1, dtype=np.float64) for block in blocks]
        self.gain = np.concatenate(sums) - closest.sum(dtype=np.float64)

    def add(self, token: int) -> None:
        """Update coverage after ``token`` was selected."""
        row = self._similarity[token].copy()
        row[token] = 1
        changed = np.flatnonzero(row > self.closest)
        before, after = self.closest[changed, None], row[changed, None]
        # These are columns of the symmetric matrix; as rows they are contiguous in memory.
        covered = self._similarity[changed]
        np.clip(covered, before, after, out=covered)
        self.gain -= np.add.reduce(covered, axis=0, dtype=np.float64) - before.sum(dtype=np.float64)
        self.closest[changed] = row[changed]


def best_of(score: Array, rounding: float) -> int:
    """Return the lowest index among the maxima; scores that differ by less than ``rounding`` tie."""
    top = score.max()
    return int((score >= top - rounding * max(1.0, abs(top))).argmax())


def select_on_cpu(
    similarity: Array, relevance: Array | None, num_keep: int, objective: Objective, rounding: float
) -> list[int]:
    """Select ``num_keep`` of N tokens, as :func:`tops_engine.selection.greedy_select` describes.

    Parameters
    ----------
    similarity : float32 or float64 [N, N].
    relevance : float64 [N], at most 1 in size; modified in place.
    rounding : the rounding error of the similarities.
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
    """Return the weighted sum of the criteria, each brought to one scale over the tokens left; -inf for the others.

    Parameters
    ----------
    terms : for each criterion its weight, its values [N] (0 for selected tokens), and the noise up to which a value
        counts as 0.
    """
    score = barred.copy()
    for weight, values, noise in terms:
        if not weight:
            continue
        if noise:
            # Otherwise rounding errors would be scaled up when no token can gain anything.
            values = values * (values > noise)
        if normalization == "minmax":
            left = values[barred == 0]
            low, span = left.min(), left.max() - left.min()
            if span > noise:
                score += (values - low) * (weight / span)
        else:
            # Only relevance may be negative; its noise is 0.
            total = (values if noise else np.abs(values)).sum(dtype=np.float64)
            if total:
                score += values * (weight * num_left / total)
    return score
