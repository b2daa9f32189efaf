"""Sharing visual tokens among pictures, without messages or models."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_tops.budgets import Demand, allot, weights_by_age

from tops_engine.errors import InvalidInput


def demands(num_pictures: int, decay: Any = "half", full: int = 576, least: int = 16) -> list[Demand]:
    """Equal pictures, one a message, the newest last."""
    ages = list(range(num_pictures))[::-1]
    nothing: list[Any] = [None] * num_pictures
    return [Demand(full, least, weight) for weight in weights_by_age(ages, nothing, [0.0] * num_pictures, decay)]


def test_nothing_changes_while_everything_fits() -> None:
    assert allot(demands(3), 3 * 576) == [576, 576, 576]
    assert allot([], 100) == []


def test_older_pictures_get_half_and_the_oldest_nothing() -> None:
    # As many as fit in full, then halves: 2 * 576 + 437 + 218 + 109 + 54 + 27 is just below 2000.
    assert allot(demands(9), 2000) == [0, 0, 27, 54, 109, 218, 437, 576, 576]


def test_linear_decay_is_even() -> None:
    shares = allot(demands(4, "linear", full=100), 250)
    assert shares == [25, 50, 75, 100]


def test_a_function_decides_from_age_tool_and_relevance() -> None:
    seen = []

    def decay(age: int, tool: str | None, relevance: float) -> float:
        seen.append((age, tool, relevance))
        return 0.0 if tool == "shot" else 1.0

    weights = weights_by_age([2, 1, 0], ["shot", None, "plot"], [0.5, 0.0, 1.0], decay)
    assert weights == [0.0, 1.0, 1.0]
    assert seen == [(2, "shot", 0.5), (1, None, 0.0), (0, "plot", 1.0)]
    assert allot([Demand(10, 2, weight) for weight in weights], 100) == [0, 10, 10]


@pytest.mark.parametrize("weight", [-0.1, 1.5, None, "much", True, float("nan")])
def test_a_function_must_return_a_share(weight: Any) -> None:
    with pytest.raises(InvalidInput, match=r"return a number from 0\.0 to 1\.0"):
        weights_by_age([0], [None], [0.0], lambda *_: weight)


def test_protected_pictures_are_served_first() -> None:
    old, middle, new = Demand(100, 16, 0.25, protected=True), Demand(100, 16, 0.5), Demand(100, 16, 1.0, protected=True)
    assert allot([old, middle, new], 250) == [100, 50, 100]
    assert allot([old, middle, new], 150) == [50, 0, 100]  # the rest of 0 tokens is not worth sending
    assert allot([old, middle, new], 15) == [0, 0, 0]


def test_a_picture_of_a_fixed_number_of_tokens_is_sent_whole_or_not() -> None:
    assert allot(demands(4, full=1120, least=1120), 3000) == [0, 0, 1120, 1120]


@given(
    st.lists(
        st.builds(
            lambda full, least, weight, protected: Demand(full, min(full, least), weight, protected),
            st.integers(0, 3000),
            st.integers(0, 3000),
            st.floats(0, 1),
            st.booleans(),
        ),
        max_size=12,
    ),
    st.integers(0, 9000),
)
def test_budgets_never_exceed_the_limit_nor_what_was_asked(pictures: list[Demand], limit: int) -> None:
    shares = allot(pictures, limit)
    assert sum(shares) <= limit
    assert all(
        share == 0 or picture.least <= share <= picture.full for share, picture in zip(shares, pictures, strict=True)
    )
    wanted = [picture.full if picture.weight > 0 else 0 for picture in pictures]
    if sum(wanted) <= limit:
        assert shares == wanted
