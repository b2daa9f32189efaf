"""Compare SCOPE's selection with its definition in plain Python."""

import math

import pytest
import torch

from tops_engine.selection import coverage, greedy_select, saliency_coverage_select


def plain(features: list[list[float]], saliency: list[float], num_keep: int, exponent: float) -> list[int]:
    tokens = range(len(features))

    def cosine(i: int, j: int) -> float:
        a, b = features[i], features[j]
        return sum(x * y for x, y in zip(a, b, strict=True)) / math.hypot(*a) / math.hypot(*b)

    similarity = [[cosine(i, j) for j in tokens] for i in tokens]
    covered = [0.0] * len(features)
    chosen: list[int] = []
    while len(chosen) < num_keep:
        rest = [j for j in tokens if j not in chosen]
        gains = {j: sum(max(0.0, similarity[i][j] - covered[i]) for i in tokens) for j in rest}
        # Two tokens that only cover each other gain the same: what differs by rounding goes to the lowest index.
        chosen.append(max(rest, key=lambda j: round(gains[j] * (saliency[j] / max(saliency)) ** exponent, 9)))
        covered = [max(covered[i], similarity[i][chosen[-1]]) for i in tokens]
    return chosen


@pytest.mark.parametrize("form", ["_select_on_cpu", "_select_on_device"])
@pytest.mark.parametrize("exponent", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("num_tokens", [1, 6, 40])
def test_chooses_what_the_definition_chooses(
    monkeypatch: pytest.MonkeyPatch, form: str, exponent: float, num_tokens: int
) -> None:
    monkeypatch.setattr(coverage, "_form_for", lambda _: getattr(coverage, form))
    generator = torch.Generator().manual_seed(num_tokens)
    features = torch.randn(num_tokens, 6, generator=generator, dtype=torch.float64)
    saliency = torch.rand(num_tokens, generator=generator, dtype=torch.float64)
    for num_keep in {1, (num_tokens + 1) // 2}:
        order = saliency_coverage_select(features, saliency, num_keep, exponent)
        assert order.tolist() == plain(features.tolist(), saliency.tolist(), num_keep, exponent)


def test_everything_can_be_kept() -> None:
    features = torch.randn(12, 4, generator=torch.Generator().manual_seed(0))
    assert sorted(saliency_coverage_select(features, torch.rand(12), 12, 1.0).tolist()) == list(range(12))


def test_without_saliency_the_first_choice_is_that_of_tops_coverage() -> None:
    features = torch.randn(30, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    tops = greedy_select(features[None], None, 1, use_relevance=False, diversity_weight=0.0, coverage_weight=1.0)
    assert saliency_coverage_select(features, torch.ones(30), 1, 0.0).tolist() == tops[0].tolist()
