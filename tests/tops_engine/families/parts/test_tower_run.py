"""Test how equal tiles are found, and how many tokens remain in a tower."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from tops_engine.families.parts.tower_run import first_equal, number_kept

TILES = [torch.tensor(values) for values in ([0.0, 1.0], [1.0, 0.0], [0.5, 0.5], [-0.0, 1.0], [[0.0, 1.0]])]


@given(st.lists(st.integers(0, len(TILES) - 1), min_size=1, max_size=9))
def test_the_first_equal_one_is_that_of_a_plain_search(numbers: list[int]) -> None:
    """Permuted values, and zeros of different signs, are different tiles."""
    expected = [numbers.index(number) for number in numbers]
    assert first_equal([TILES[number].clone() for number in numbers]).tolist() == expected


@given(st.floats(0.001, 0.999), st.integers(2, 999))
def test_some_tokens_remain_and_some_are_dropped(keep: float, num_tokens: int) -> None:
    assert 1 <= number_kept(keep, num_tokens) < num_tokens
    assert number_kept(keep, 1) == 1
