"""Share a number of visual tokens among the pictures of a conversation: pure functions, without messages or models."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from tops_engine.errors import InvalidInput, quote

Decay = Literal["half", "linear"] | Callable[[int, str | None, float], float]


@dataclass(frozen=True)
class Demand:
    """What one picture asks for.

    Attributes:
        full: Its visual tokens if nothing is saved.
        least: The fewest tokens that are worth sending, at most ``full``.
        weight: How much it counts beside the others, from 0.0 to 1.0.
        protected: Whether it is served before pictures that are not protected.
    """

    full: int
    least: int
    weight: float = 1.0
    protected: bool = False


def allot(demands: Sequence[Demand], max_tokens: int) -> list[int]:
    """Return the number of tokens of each picture; 0 for a picture that is left out.

    The sum is at most ``max_tokens``. Protected pictures are served first, the others share the rest. A picture gets a
    number of tokens in proportion to ``weight * full``, at most ``full``. As many pictures as fit are in full, so
    nothing changes as long as everything fits. A picture that would get less than its ``least`` is left out, beginning
    with the smallest weight and, at equal weights, with the first picture; the others share its tokens.

    Args:
        demands: The pictures, from the oldest to the newest.
        max_tokens: The number of tokens to share, at least 0.
    """
    tokens = [0] * len(demands)
    for protected in (True, False):
        served = [
            number for number, demand in enumerate(demands) if demand.protected == protected and demand.weight > 0
        ]
        for number, share in _share([demands[number] for number in served], max_tokens - sum(tokens)):
            tokens[served[number]] = share
    return tokens


def weights_by_age(
    ages: Sequence[int], tools: Sequence[str | None], relevances: Sequence[float], decay: Decay
) -> list[float]:
    """Return the weight of each picture.

    Args:
        ages: How many later messages hold pictures; 0 is the newest.
        tools: The tool that made each picture, None if it is from no tool.
        relevances: How much of the question is about each picture, from 0.0 to 1.0.
        decay: "half" halves the weight with each step of age, "linear" lowers it evenly from 1.0 for the newest to the
            same step above 0.0 for the oldest, and a function returns it from age, tool and relevance.

    Raises:
        InvalidInput: If the function returns no number from 0.0 to 1.0.
    """
    if decay == "half":
        return [0.5**age for age in ages]
    if decay == "linear":
        return [1 - age / (max(ages) + 1) for age in ages]
    assert callable(decay)
    weights = [decay(*picture) for picture in zip(ages, tools, relevances, strict=True)]
    for weight in weights:
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight <= 1:
            raise InvalidInput(f"decay returned {quote(weight)}; return a number from 0.0 to 1.0.")
    return weights


def _share(demands: Sequence[Demand], max_tokens: int) -> list[tuple[int, int]]:
    """Return the numbers and tokens of the pictures that are sent."""
    sent = list(range(len(demands)))
    while sent:
        scale = _scale([demands[number] for number in sent], max_tokens)
        shares = {number: min(demands[number].full, int(scale * _wish(demands[number]))) for number in sent}
        if all(shares[number] >= demands[number].least for number in sent):
            return list(shares.items())
        short = (number for number in sent if shares[number] < demands[number].least)
        sent.remove(min(short, key=lambda number: (demands[number].weight, number)))
    return []


def _scale(demands: Sequence[Demand], max_tokens: int) -> Fraction:
    """Return the factor of the wishes at which the tokens add up to ``max_tokens``, or that gives everybody all."""
    left, wishes = max_tokens, sum(map(_wish, demands), start=Fraction(0))
    for demand in sorted(demands, key=lambda demand: -demand.weight):
        if left * Fraction(demand.weight) < wishes:
            return left / wishes
        left -= demand.full
        wishes -= _wish(demand)
    return 1 / min(Fraction(demand.weight) for demand in demands)


def _wish(demand: Demand) -> Fraction:
    # Exact, so that rounding cannot bring the sum above the limit.
    return Fraction(demand.weight) * demand.full
