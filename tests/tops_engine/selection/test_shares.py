"""Test how a budget is divided among tiles."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tops_engine.selection import apportion, tile_budgets


@given(st.lists(st.integers(0, 40), min_size=1, max_size=8), st.data())
def test_shares_add_up_fit_and_are_proportional(sizes: list[int], data: st.DataObject) -> None:
    total = data.draw(st.integers(0, sum(sizes)))
    shares = apportion(total, sizes)
    assert sum(shares) == total
    for share, size in zip(shares, sizes, strict=True):
        assert 0 <= share <= size
        assert abs(share - total * size / max(sum(sizes), 1)) < 1


@pytest.mark.parametrize(
    ("total", "sizes", "expected"),
    [
        (640, [576] * 5, [128] * 5),
        (7, [4, 4, 4], [3, 2, 2]),
        (1, [2, 5, 5], [0, 1, 0]),
        (0, [3], [0]),
        (3, [3, 0], [3, 0]),
    ],
)
def test_the_largest_remainders_get_what_is_left(total: int, sizes: list[int], expected: list[int]) -> None:
    assert apportion(total, sizes) == expected


def test_tokens_that_are_no_patches_come_last() -> None:
    tiles = torch.tensor([5, 5, 0, 8, 0, 8, 5])
    budgets, rest = tile_budgets(tiles, 4)
    assert [(budget.tokens.tolist(), budget.num_keep) for budget in budgets] == [([0, 1, 6], 2), ([3, 5], 2)]
    assert rest.tolist() == []
    budgets, rest = tile_budgets(tiles, 6)
    assert [budget.num_keep for budget in budgets] == [3, 2]
    assert rest.tolist() == [2]
    budgets, rest = tile_budgets(tiles, 1)
    assert [(budget.tokens.tolist(), budget.num_keep) for budget in budgets] == [([0, 1, 6], 1)]
