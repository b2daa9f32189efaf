"""Greedy selection on the CPU with numpy, for several images with the same small number of tokens at once.

The steps are those of :mod:`tops_engine.selection.cpu`, with one call for all images. With few tokens most of a step is
the cost of the calls; with many it is reading the similarities, which stay in the cache only for one image.
"""

from collections.abc import Sequence
from math import inf
from typing import Any

import numpy as np
import numpy.typing as npt

from tops_engine.selection.objective import Objective

Array = npt.NDArray[Any]

#: The most tokens of an image for which this is faster, and how many similarities stay in the cache.
MOST_TOKENS, MOST_SIMILARITIES = 256, 2**20


def groups_of(num_tokens: Sequence[int]) -> list[list[int]]:
    """Return which images are chosen together, by the number of tokens of each image."""
    groups = []
    for size in dict.fromkeys(num_tokens):
        images = [image for image, number in enumerate(num_tokens) if number == size]
        together = MOST_SIMILARITIES // size**2 if size <= MOST_TOKENS else 1
        groups += [images[start : start + together] for start in range(0, len(images), together)]
    return groups


def select_together(
    similarity: Array, relevance: Array | None, num_keep: int, objective: Objective, rounding: float
) -> Array:
    """Select ``num_keep`` of N tokens of each image, as :func:`tops_engine.selection.cpu.select_on_cpu` does for one.

    Parameters
    ----------
    similarity : float32 or float64 [B, N, N].
    relevance : float64 [B, N], at most 1 in size; modified in place.
    rounding : the rounding error of the similarities.

    Returns
    -------
    int64 [B, num_keep], in the order of selection.
    """
    num_images, num_tokens, _ = similarity.shape
    images = np.arange(num_images)
    noise = rounding * num_tokens
    barred = np.zeros((num_images, num_tokens))
    if relevance is not None:
        best = relevance.argmax(axis=1)
    else:
        nothing = np.zeros_like(similarity[:, 0])
        terms = [(objective.diversity_weight, 1 - nothing, rounding)]
        if objective.coverage_weight:
            terms.append((objective.coverage_weight, _Covered(similarity, nothing).gain, noise))
        best = _best_of(_score(terms, barred, objective.normalization, num_tokens), rounding)
    order = [best]
    closest = similarity[images, best]
    closest[images, best] = 1
    covered = _Covered(similarity, closest) if objective.coverage_weight else None
    while len(order) < num_keep:
        barred[images, best] = -inf
        terms = [(objective.diversity_weight, 1 - closest, rounding)]
        if relevance is not None:
            relevance[images, best] = 0
            terms.append((1.0, relevance, 0.0))
        if covered is not None:
            covered.gain[images, best] = 0
            terms.append((objective.coverage_weight, covered.gain, noise))
        best = _best_of(_score(terms, barred, objective.normalization, num_tokens - len(order)), rounding)
        order.append(best)
        if covered is not None:
            covered.add(best)
        else:
            np.maximum(closest, similarity[images, best], out=closest)
            closest[images, best] = 1
    return np.stack(order, axis=1)


class _Covered:
    """:class:`tops_engine.selection.cpu.Covered` of several images; ``closest`` and ``gain`` are [B, N]."""

    def __init__(self, similarity: Array, closest: Array) -> None:
        self._similarity = similarity
        self._images = np.arange(len(similarity))
        self.closest = closest
        sums = [np.maximum(*pair).sum(axis=1, dtype=np.float64) for pair in zip(similarity, closest, strict=True)]
        self.gain = np.stack(sums) - closest.sum(axis=1, dtype=np.float64, keepdims=True)

    def add(self, tokens: Array) -> None:
        """Update coverage after ``tokens``, one of each image, were selected."""
        rows = self._similarity[self._images, tokens]
        rows[self._images, tokens] = 1
        image, token = np.nonzero(rows > self.closest)
        before, after = self.closest[image, token][:, None], rows[image, token][:, None]
        covered = self._similarity[image, token]
        np.clip(covered, before, after, out=covered)
        # Rows of an image follow each other; an image of which nothing changed has none.
        changed, starts = np.unique(image, return_index=True)
        for values, sign in (covered, 1), (before, -1):
            self.gain[changed] -= sign * np.add.reduceat(values, starts, axis=0, dtype=np.float64)
        self.closest[image, token] = after[:, 0]


def _best_of(score: Array, rounding: float) -> Array:
    """Return the lowest index among the maxima of each row, int64 [B]; scores within ``rounding`` tie."""
    top = score.max(axis=1, keepdims=True)
    best: Array = (score >= top - rounding * np.maximum(1.0, np.abs(top))).argmax(axis=1)
    return best


def _score(terms: list[tuple[float, Array, float]], barred: Array, normalization: str, num_left: int) -> Array:
    """Return the weighted sum of the criteria [B, N]; the parameters are those of the form for one image."""
    score = barred.copy()
    for weight, values, noise in terms:
        if not weight:
            continue
        if noise:
            values = values * (values > noise)
        if normalization == "minmax":
            left = barred == 0
            low = np.where(left, values, inf).min(axis=1, keepdims=True)
            span = np.where(left, values, -inf).max(axis=1, keepdims=True) - low
            score += (values - low) * np.divide(weight, span, out=np.zeros_like(span), where=span > noise)
        else:
            total = (values if noise else np.abs(values)).sum(axis=1, dtype=np.float64, keepdims=True)
            score += values * np.divide(weight * num_left, total, out=np.zeros_like(total), where=total != 0)
    return score
