"""Find how sure a model has to be of an answer of a cascade."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

#: Thresholds are multiples of one part of this.
PARTS = 1000


@dataclass(frozen=True)
class Attempt:
    """The answer of one budget of a cascade: how sure the model is of it, and whether it agrees."""

    sure: float
    agrees: bool


def smallest_threshold(attempts: Sequence[Sequence[Attempt]], agree: float) -> float | None:
    """Return the smallest threshold with which enough answers of the cascade agree, None if there is none.

    The smallest threshold goes on least often and is the cheapest.

    Parameters
    ----------
    attempts : for each question, the answers of all budgets in order. The last one is taken however sure it is.
    agree : share of the answers that must agree.
    """
    # From each of these on, an answer more is not taken.
    above = {math.floor(attempt.sure * PARTS) + 1 for question in attempts for attempt in question[:-1]}
    for candidate in sorted({1} | {one for one in above if one <= PARTS}):
        threshold = candidate / PARTS
        if sum(_answer(question, threshold).agrees for question in attempts) >= agree * len(attempts) - 1e-9:
            return threshold
    return None


def _answer(question: Sequence[Attempt], threshold: float) -> Attempt:
    """Return the answer that the cascade gives."""
    return next((attempt for attempt in question[:-1] if attempt.sure >= threshold), question[-1])
