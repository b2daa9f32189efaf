"""Test the division of a budget among pictures: curves by their definitions, and the division step by step."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tops_engine.selection import CURVES, allocate, greedy_select_reference, with_least


def make_features(num: int, seed: int, clusters: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(clusters, 12, generator=generator, dtype=torch.float64)
    noise = torch.randn(num, 12, generator=generator, dtype=torch.float64)
    return 0.3 * noise + centres[torch.randint(clusters, (num,), generator=generator)]


def test_coverage_is_how_similar_the_chosen_tokens_are_to_all() -> None:
    features = make_features(30, seed=1)
    unit = features / features.norm(dim=1, keepdim=True)
    order = greedy_select_reference(features, None, 30, use_relevance=False, diversity_weight=0.0, coverage_weight=1.0)
    expected = [
        sum(max([0.0, *(float(unit[i] @ unit[j]) for i in order[:k])]) for j in range(30)) / 30 for k in range(1, 31)
    ]
    assert CURVES["coverage"](features, 30) == pytest.approx(expected)
    assert CURVES["coverage"](features, 7) == pytest.approx(expected[:7])
    assert expected[-1] == pytest.approx(1)


def test_spectral_is_the_energy_of_the_largest_singular_values() -> None:
    features = make_features(9, seed=2)
    energy = torch.linalg.svdvals(features / features.norm(dim=1, keepdim=True)).square()
    expected = (energy.cumsum(0) / energy.sum()).tolist()
    assert CURVES["spectral"](features, 9) == pytest.approx(expected)
    # 12 values at most: more tokens than dimensions add no energy.
    assert CURVES["spectral"](make_features(30, seed=2), 30)[12:] == pytest.approx([1.0] * 18)


def test_erank_is_the_exponential_of_the_entropy_of_the_singular_values() -> None:
    features = make_features(20, seed=3)
    values = torch.linalg.svdvals(features / features.norm(dim=1, keepdim=True)).tolist()
    shares = [value / sum(values) for value in values]
    rank = math.exp(-sum(share * math.log(share) for share in shares))
    assert CURVES["erank"](features, 4) == pytest.approx([k / rank for k in (1, 2, 3, 4)], rel=1e-6)
    equal = torch.eye(6, dtype=torch.float64)
    assert CURVES["erank"](equal, 6)[-1] == pytest.approx(1)


@pytest.mark.parametrize("name", sorted(CURVES))
@pytest.mark.parametrize("kind", ["random", "equal", "zero", "half"])
def test_curves_are_finite_and_never_fall(name: str, kind: str) -> None:
    features = {
        "random": make_features(16, 4),
        "equal": torch.ones(16, 4),
        "zero": torch.zeros(16, 4),
        "half": make_features(16, 5).half(),
    }[kind]
    curve = CURVES[name](features, 16)
    assert len(curve) == 16
    assert all(math.isfinite(share) for share in curve)
    assert all(after >= before - 1e-6 for before, after in itertools.pairwise(curve))


curves = st.lists(st.lists(st.integers(0, 6).map(float), min_size=1, max_size=8).map(sorted), min_size=1, max_size=5)


@settings(max_examples=100, deadline=None)
@given(curves, st.integers(0, 45), st.data())
def test_each_token_goes_to_the_picture_with_the_smallest_share(
    curves: list[list[float]], total: int, data: st.DataObject
) -> None:
    least = [data.draw(st.integers(1, len(curve))) for curve in curves]
    counts = list(least)
    while sum(counts) < min(total, sum(map(len, curves))):
        open_ = [number for number, curve in enumerate(curves) if counts[number] < len(curve)]
        counts[min(open_, key=lambda number: (curves[number][counts[number] - 1], number))] += 1
    assert allocate(curves, total, least) == counts


def test_equal_pictures_get_equal_budgets_and_a_poor_one_less() -> None:
    rich, poor = make_features(40, 6, clusters=40), make_features(40, 7, clusters=2)
    for name, curve in CURVES.items():
        first, second, third = allocate([curve(one, 40) for one in (rich, rich, poor)], 30, [1, 1, 1])
        assert abs(first - second) <= 1, name
        assert third < second, name
        assert first + second + third == 30


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_a_joint_selection_keeps_the_least_of_each_picture(data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=4))
    starts = [sum(sizes[:number]) for number in range(len(sizes))]
    order = data.draw(st.permutations(range(sum(sizes))))
    count = data.draw(st.integers(len(sizes), sum(sizes)))
    least = [1] * len(sizes)
    for number in data.draw(st.lists(st.integers(0, len(sizes) - 1), max_size=8)):
        if least[number] < sizes[number] and sum(least) < count:
            least[number] += 1
    own = [
        [starts[number] + token for token in data.draw(st.permutations(range(size)))]
        for number, size in enumerate(sizes)
    ]
    chosen = with_least(order[:count], sizes, least, lambda number: own[number][: least[number]])
    counts = [sum(start <= token < start + size for token in chosen) for start, size in zip(starts, sizes, strict=True)]

    assert len(set(chosen)) == len(chosen) == count
    assert all(have >= wanted for have, wanted in zip(counts, least, strict=True))
    joint = [sum(start <= t < start + size for t in order[:count]) for start, size in zip(starts, sizes, strict=True)]
    if all(have >= wanted for have, wanted in zip(joint, least, strict=True)):
        assert chosen == order[:count]
    # What gave way was chosen after everything that stayed of pictures that had more than their least.
    gone = [place for place, token in enumerate(order[:count]) if token not in chosen]
    for place in gone:
        number = max(n for n, start in enumerate(starts) if start <= order[place])
        later = [t for t in order[place + 1 : count] if t in chosen]
        assert all(
            counts[max(n for n, start in enumerate(starts) if start <= t)]
            == least[max(n for n, start in enumerate(starts) if start <= t)]
            for t in later
        ), number
