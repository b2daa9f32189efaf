"""Compare max-min diversity with its definition in plain Python."""

import math
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tops_engine.selection import max_min, max_min_select


@pytest.fixture(params=["_select_on_cpu", "_select_on_device"], scope="module", autouse=True)
def form(request: pytest.FixtureRequest) -> Iterator[None]:
    """Run all tests with the loop for each kind of device, whatever the device."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(max_min, "_form_for", lambda _: getattr(max_min, request.param))
        yield


def plain(features: list[list[float]], num_keep: int) -> list[int]:
    """Select by greedy max-min dispersion with cosine distance, from the paper's algorithm."""

    def distance(i: int, j: int) -> float:
        a, b = features[i], features[j]
        return 1 - sum(x * y for x, y in zip(a, b, strict=True)) / math.hypot(*a) / math.hypot(*b)

    tokens = range(len(features))
    first = max(tokens, key=lambda j: min((distance(i, j) for i in tokens if i != j), default=0.0))
    chosen = [first]
    while len(chosen) < num_keep:
        rest = [j for j in tokens if j not in chosen]
        chosen.append(max(rest, key=lambda j: min(distance(i, j) for i in chosen)))
    return chosen


@pytest.mark.parametrize("num_tokens", [1, 5, 40])
@pytest.mark.parametrize("seed", range(4))
def test_chooses_what_the_definition_chooses(num_tokens: int, seed: int) -> None:
    features = torch.randn(num_tokens, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    for num_keep in {1, max(1, num_tokens // 2), num_tokens}:
        assert max_min_select(features, num_keep).tolist() == plain(features.tolist(), num_keep)


@given(st.integers(1, 12), st.integers(0, 1000), st.data())
def test_indices_are_distinct_and_in_range(num_tokens: int, seed: int, data: st.DataObject) -> None:
    num_keep = data.draw(st.integers(1, num_tokens))
    features = torch.randn(num_tokens, 3, generator=torch.Generator().manual_seed(seed))
    order = max_min_select(features, num_keep).tolist()
    assert len(set(order)) == num_keep
    assert set(order) <= set(range(num_tokens))


def test_copies_wait_until_all_distinct_tokens_are_chosen() -> None:
    distinct = torch.eye(4, dtype=torch.float64)
    order = max_min_select(distinct[[0, 0, 1, 2, 2, 3]], 6).tolist()
    assert sorted(order[:4]) == [0, 2, 3, 5]


def test_identical_and_zero_tokens_come_in_order() -> None:
    assert max_min_select(torch.ones(5, 3), 3).tolist() == [0, 1, 2]
    assert max_min_select(torch.zeros(5, 3), 3).tolist() == [0, 1, 2]


def test_half_precision_is_computed_in_float32() -> None:
    features = torch.randn(30, 16, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert max_min_select(features, 9).tolist() == max_min_select(features.float(), 9).tolist()
