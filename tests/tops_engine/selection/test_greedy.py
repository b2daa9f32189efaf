"""Test greedy selection: the reference, the loops for CPUs and accelerators, and edge cases."""

import math
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.support.simulated_gpu import OnDevice, SimulatedGPU
from tops_engine.device.checks import deferred_checks
from tops_engine.errors import InvalidInput
from tops_engine.selection import (
    Normalization,
    cosine_similarity,
    greedy,
    greedy_select,
    greedy_select_reference,
)

CRITERIA = [(r, d, c) for r, d, c in product([True, False], repeat=3) if r or d or c]
NORMALIZATIONS: list[Normalization] = ["mean", "minmax"]
quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(params=["host", "device"])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a test with the loop for each kind of device, whatever the device."""
    chosen = {"host": greedy._select_on_cpu, "device": greedy._select_on_device}[request.param]
    monkeypatch.setattr(greedy, "_form_for", lambda _: chosen)


def make_tokens(kind: str, num: int, size: int = 16, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(num, size, generator=generator, dtype=torch.float64)
    if kind == "clustered":
        centres = torch.randn(5, size, generator=generator, dtype=torch.float64)
        features = 0.2 * features + centres[torch.randint(5, (num,), generator=generator)]
    return features, torch.rand(num, generator=generator, dtype=torch.float64)


def options(
    relevance: bool = True, diversity: bool = True, coverage: bool = True, normalization: Normalization = "mean"
) -> dict[str, Any]:
    return {
        "use_relevance": relevance,
        "diversity_weight": 0.5 * diversity,
        "coverage_weight": 0.7 * coverage,
        "normalization": normalization,
    }


def select_one(features: Tensor, relevance: Tensor | None, num_keep: int, **kwargs: Any) -> list[int]:
    return greedy_select(features[None], relevance if relevance is None else relevance[None], num_keep, **kwargs)[
        0
    ].tolist()


def plain_scores(
    features: Tensor, relevance: Tensor, selected: list[int], alpha: float, lam: float
) -> dict[int, float]:
    """Compute mean-normalized scores after ``selected`` in plain Python, without code of the package."""
    tokens = features.double().tolist()
    norms = [sum(x * x for x in token) ** 0.5 for token in tokens]

    def sim(i: int, j: int) -> float:
        return sum(x * y for x, y in zip(tokens[i], tokens[j], strict=True)) / (norms[i] * norms[j])

    rest = [i for i in range(len(tokens)) if i not in selected]
    closest = {j: max(sim(j, k) for k in selected) for j in rest}
    r = {i: float(relevance[i]) for i in rest}
    d = {i: 1 - closest[i] for i in rest}
    c = {i: sum(max(0.0, sim(i, j) - closest[j]) for j in rest) for i in rest}

    def mean(values: dict[int, float]) -> float:
        return sum(values.values()) / len(values)

    return {i: r[i] / mean(r) + alpha * d[i] / mean(d) + lam * c[i] / mean(c) for i in rest}


# Tokens at 0, 37, 90 and 180 degrees. Similarities: 01 .8, 02 0, 03 -1, 12 .6, 13 -.8, 23 0.
HAND_FEATURES = torch.tensor([[2.0, 0.0], [0.8, 0.6], [0.0, 3.0], [-1.0, 0.0]])
HAND_RELEVANCE = torch.tensor([0.4, 0.3, 0.2, 0.1])


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        # Token 0 is the most relevant: m = (1, .8, 0, -1), U = {1, 2, 3}, and
        #   r = (.3, .2, .1)            by their mean .2:    1.5     1       0.5
        #   d = (.2, 1, 2)              by their mean 3.2/3: 0.1875  0.9375  1.875
        #   c = (.2+.6+.2, 0+1+1, 0+0+2), by their mean 5/3: 0.6     1.2     1.2
        #   score                                            1.89375 2.06875 2.0375 -> token 2.
        # m = (1, .8, 1, 0), U = {1, 3}: r = (.3, .1), d = (.2, 1), c = (.2+0, 0+1)
        #   score 1.5 + .5/3 + .5/3 = 1.83, .5 + .5*5/3 + .5*5/3 = 2.17 -> token 3, then 1.
        ({}, [0, 2, 3, 1]),
        # r~ = (1, .5, 0), d~ = (0, .8/1.8, 1), c~ = (0, 1, 1): score 1, 1.22, 1 -> token 2.
        # r~ = (1, 0), d~ = (0, 1), c~ = (0, 1): score 1, 1, a tie -> token 1.
        ({"normalization": "minmax"}, [0, 2, 1, 3]),
        ({"diversity_weight": 0, "coverage_weight": 0}, [0, 1, 2, 3]),
        # Nothing selected: c = (1.8, 2.4, 1.6, 1) -> token 1; m = (.8, 1, .6, -.8), U = {0, 2, 3}:
        # c = (.2+0+0, 0+.4+.8, 0+0+1.8) -> token 3; m = (.8, 1, .6, 1): c = (.2, .4) -> token 2.
        ({"use_relevance": False, "diversity_weight": 0}, [1, 3, 2, 0]),
        # The first token; then the farthest from it, 3; then d = (1 - .8, 1 - 0) -> token 2.
        ({"use_relevance": False, "coverage_weight": 0}, [0, 3, 2, 1]),
    ],
)
def test_hand_computed(form: None, chosen: dict[str, Any], expected: list[int]) -> None:
    assert greedy_select_reference(HAND_FEATURES, HAND_RELEVANCE, 4, **chosen) == expected
    assert select_one(HAND_FEATURES, HAND_RELEVANCE, 4, **chosen) == expected


def test_reference_follows_plain_python() -> None:
    features, relevance = make_tokens("clustered", 14, size=4)
    order = greedy_select_reference(features, relevance, 14, diversity_weight=0.5, coverage_weight=0.7)
    expected = [int(relevance.argmax())]
    while len(expected) < 14:
        scores = plain_scores(features, relevance, expected, 0.5, 0.7)
        expected.append(max(scores, key=scores.__getitem__))
    # The last token is alone; whatever its score, it comes last.
    assert order == expected


@pytest.mark.parametrize("kind", ["random", "clustered"])
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("criteria", CRITERIA)
def test_same_as_reference(
    form: None, kind: str, normalization: Normalization, criteria: tuple[bool, bool, bool]
) -> None:
    features, relevance = make_tokens(kind, 50)
    chosen = options(*criteria, normalization)
    for num_keep in (1, 20, 50):
        expected = greedy_select_reference(features, relevance, num_keep, **chosen)
        assert select_one(features, relevance, num_keep, **chosen) == expected


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("criteria", CRITERIA)
def test_a_smaller_selection_is_the_beginning_of_a_larger_one(
    form: None, normalization: Normalization, criteria: tuple[bool, bool, bool]
) -> None:
    features, relevance = make_tokens("clustered", 60, seed=3)
    chosen = options(*criteria, normalization)
    whole = select_one(features, relevance, 60, **chosen)
    for num_keep in (1, 2, 17, 59):
        assert select_one(features, relevance, num_keep, **chosen) == whole[:num_keep]


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_large_selection_does_not_drift(form: None, normalization: Normalization) -> None:
    features, relevance = make_tokens("clustered", 300, size=32)
    expected = greedy_select_reference(features, relevance, 300, normalization=normalization)
    assert select_one(features, relevance, 300, normalization=normalization) == expected


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("criteria", CRITERIA)
def test_ragged_batch_is_each_sample_alone(
    form: None, normalization: Normalization, criteria: tuple[bool, bool, bool]
) -> None:
    chosen = options(*criteria, normalization)
    lengths, num_keep = [30, 1, 17, 24], [12, 1, 17, 3]
    samples = [make_tokens("clustered", length, seed=seed) for seed, length in enumerate(lengths)]
    # Padding on either side, holding what must not matter.
    features = torch.full((4, 30, 16), torch.nan, dtype=torch.float64)
    relevance = torch.full((4, 30), torch.inf, dtype=torch.float64)
    valid = torch.zeros(4, 30, dtype=torch.bool)
    starts = [0, 4, 0, 6]
    for row, (start, (token, value)) in enumerate(zip(starts, samples, strict=True)):
        where = slice(start, start + len(value))
        features[row, where], relevance[row, where], valid[row, where] = token, value, True

    order = greedy_select(features, relevance, num_keep, valid=valid, **chosen)

    assert order.shape == (4, 17)
    assert order.dtype == torch.int64
    for row, (start, num, (token, value)) in enumerate(zip(starts, num_keep, samples, strict=True)):
        expected = [start + i for i in greedy_select_reference(token, value, num, **chosen)]
        assert order[row].tolist() == expected + [-1] * (17 - num)


@pytest.mark.parametrize("criteria", CRITERIA)
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_small_samples_together_are_each_sample_alone(
    normalization: Normalization, criteria: tuple[bool, bool, bool]
) -> None:
    chosen, num_keep = options(*criteria, normalization), [9, 20, 1, 14, 20]
    kinds = ["clustered", "random", "clustered", "random", "clustered"]
    features, relevance = map(
        torch.stack, zip(*(make_tokens(kind, 20, seed=seed) for seed, kind in enumerate(kinds)), strict=True)
    )
    features[3] = features[3, :1]  # tokens that are all equal: no token changes what is covered
    features[4, 10:] = features[4, :10]
    order = greedy_select(features, relevance, num_keep, **chosen)
    for row, num in enumerate(num_keep):
        alone = select_one(features[row], relevance[row], num, **chosen)
        assert order[row].tolist() == alone + [-1] * (20 - num)
        assert alone == greedy_select_reference(features[row], relevance[row], num, **chosen)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_as_many_small_samples_as_in_a_batch_of_captions(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(7)
    features = torch.randn(40, 64, 24, generator=generator).to(dtype)
    relevance = torch.rand(40, 64, generator=generator)
    order = greedy_select(features, relevance, 16)
    for row in range(40):
        assert order[row].tolist() == select_one(features[row], relevance[row], 16)


def test_samples_do_not_see_each_other(form: None) -> None:
    samples = [make_tokens("clustered", 25, seed=seed) for seed in range(3)]
    order = greedy_select(torch.stack([s[0] for s in samples]), torch.stack([s[1] for s in samples]), 10)
    assert order.tolist() == [greedy_select_reference(*sample, 10) for sample in samples]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("seed", range(4))
def test_lower_precision_differs_only_within_rounding(form: None, dtype: torch.dtype, seed: int) -> None:
    features, relevance = make_tokens("clustered", 60, seed=seed)
    features, relevance = features.to(dtype), relevance.to(dtype)
    order = select_one(features, relevance, 40)
    expected = greedy_select_reference(features, relevance, 40)
    step = next((step for step in range(40) if order[step] != expected[step]), None)
    if step is not None:
        if step == 0:
            assert relevance[order[0]] == relevance[expected[0]]
        else:
            scores = plain_scores(features, relevance, expected[:step], 0.5, 0.5)
            assert abs(scores[order[step]] - scores[expected[step]]) < 1e-5


def test_relevance_may_have_another_dtype(form: None) -> None:
    features, relevance = make_tokens("random", 20)
    order = select_one(features.bfloat16(), relevance.float(), 10)
    assert order == greedy_select_reference(features.bfloat16(), relevance.float(), 10)


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("criteria", CRITERIA)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_identical_tokens_come_in_order(
    form: None, normalization: Normalization, criteria: tuple[bool, bool, bool], dtype: torch.dtype
) -> None:
    features = torch.randn(16, generator=torch.Generator().manual_seed(1)).to(dtype).expand(9, -1)
    order = select_one(features, torch.full((9,), 0.3, dtype=dtype), 9, **options(*criteria, normalization))
    assert order == list(range(9))


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("criteria", CRITERIA)
def test_repeated_tokens_lowest_index_first(
    form: None, normalization: Normalization, criteria: tuple[bool, bool, bool]
) -> None:
    generator = torch.Generator().manual_seed(3)
    distinct, values = make_tokens("random", 6)
    which = torch.randint(6, (40,), generator=generator)
    chosen = options(*criteria, normalization)
    order = select_one(distinct[which], values[which], 40, **chosen)
    assert order == greedy_select_reference(distinct[which], values[which], 40, **chosen)
    for token in range(6):
        copies = [index for index in order if which[index] == token]
        assert copies == sorted(copies)


@pytest.mark.parametrize("criteria", CRITERIA)
def test_zero_vectors_are_similar_to_nothing(form: None, criteria: tuple[bool, bool, bool]) -> None:
    features, relevance = make_tokens("random", 12)
    features[[2, 7]] = 0
    similarity = cosine_similarity(features[None])[0]
    assert similarity[2].tolist() == [0] * 12
    assert select_one(features, relevance, 12, **options(*criteria)) == greedy_select_reference(
        features, relevance, 12, **options(*criteria)
    )
    zeros = torch.zeros(5, 3)
    assert select_one(zeros, torch.zeros(5), 5, **options(*criteria)) == [0, 1, 2, 3, 4]
    assert greedy_select_reference(zeros, torch.zeros(5), 5, **options(*criteria)) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("shift", [0.5, 1.0])
def test_negative_relevance_keeps_its_order(form: None, normalization: Normalization, shift: float) -> None:
    features, relevance = make_tokens("random", 20)
    relevance = relevance - shift
    alone = options(True, False, False, normalization)
    assert select_one(features, relevance, 20, **alone) == relevance.argsort(descending=True).tolist()
    assert greedy_select_reference(features, relevance, 20, **alone) == relevance.argsort(descending=True).tolist()
    both = options(normalization=normalization)
    assert select_one(features, relevance, 20, **both) == greedy_select_reference(features, relevance, 20, **both)


def test_single_token(form: None) -> None:
    assert select_one(torch.ones(1, 4), torch.zeros(1), 1) == [0]
    assert select_one(torch.ones(1, 4), None, 1, use_relevance=False) == [0]
    assert greedy_select_reference(torch.ones(1, 4), torch.zeros(1), 1) == [0]


@pytest.mark.parametrize("scale", [1e-40, 1e-20, 1e20, 1e38])
def test_scale_of_the_input_does_not_matter(form: None, scale: float) -> None:
    features, relevance = (tensor.float() for tensor in make_tokens("random", 20))
    features, relevance = features.sign() * (1 + features.abs().floor().clamp_max(2)), (relevance * 256).floor()
    relevance = relevance / 256
    expected = select_one(features, relevance, 12)
    assert greedy_select_reference(features, relevance, 12) == expected
    assert cosine_similarity(features[None] * scale).isfinite().all()
    if scale > 1e-30:  # below, float32 itself no longer holds the same values
        assert select_one(features * scale, relevance * scale, 12) == expected


def test_input_is_left_alone(form: None) -> None:
    features, relevance = make_tokens("random", 12)
    before = features.clone(), relevance.clone()
    valid = torch.ones(1, 12, dtype=torch.bool)
    select_one(features.requires_grad_(), relevance, 12, valid=valid)
    assert torch.equal(features, before[0])
    assert torch.equal(relevance, before[1])
    assert valid.all()


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_a_gpu_is_never_waited_for(normalization: Normalization) -> None:
    samples = [make_tokens("clustered", length, seed=length) for length in (9, 6)]
    pad = torch.nn.utils.rnn.pad_sequence
    features, relevance = (pad([sample[part] for sample in samples], batch_first=True) for part in (0, 1))
    valid = torch.arange(9) < torch.tensor([9, 6])[:, None]
    assert greedy._form_for(torch.empty(1, 4, 2, device="meta")) is greedy._select_on_device
    for criteria in CRITERIA:
        chosen = options(*criteria, normalization)
        expected = greedy_select(features, relevance, [5, 3], valid=valid, **chosen)
        with SimulatedGPU() as gpu, deferred_checks() as checks:
            there = OnDevice(features), OnDevice(relevance), OnDevice(valid)
            order = greedy_select(*there[:2], [5, 3], valid=there[2], **chosen)
            assert not gpu.waits
            checks.settle()
            assert len(gpu.waits) == 1
        assert isinstance(order, OnDevice)
        assert torch.equal(order.held, expected)


@pytest.mark.parametrize("deferred", [False, True])
@pytest.mark.parametrize("wrong", [math.nan, math.inf])
@pytest.mark.parametrize("what", ["features", "relevance"])
def test_what_is_wrong_on_a_gpu_is_found_out_in_the_end(deferred: bool, wrong: float, what: str) -> None:
    features, relevance = make_tokens("random", 12)
    (features if what == "features" else relevance)[3:5] = wrong
    with SimulatedGPU() as gpu:
        there = OnDevice(features)[None], OnDevice(relevance)[None]
        if not deferred:
            with pytest.raises(InvalidInput, match=f"NaN or infinite values in {what}"):
                greedy_select(*there, 5)
            return
        with deferred_checks() as checks:
            order = greedy_select(*there, 5)
            greedy_select(OnDevice(make_tokens("random", 4)[0])[None], None, 9, use_relevance=False)
        assert not gpu.waits
        assert set(order.flatten().tolist()) <= set(range(12))
        with pytest.raises(InvalidInput, match=f"NaN or infinite values in {what}"):
            checks.settle()
        checks.settle()  # nothing is left of it


small_int = st.integers(-2, 2).map(float)


@st.composite
def tied_inputs(draw: st.DrawFn) -> Any:
    num, size = draw(st.integers(1, 7)), draw(st.integers(1, 3))
    features = draw(st.lists(st.lists(small_int, min_size=size, max_size=size), min_size=num, max_size=num))
    relevance = draw(st.lists(small_int, min_size=num, max_size=num))
    relevance_on, diversity, coverage = draw(st.sampled_from(CRITERIA))
    chosen = options(relevance_on, diversity, coverage, draw(st.sampled_from(NORMALIZATIONS)))
    dtype = torch.float64
    return torch.tensor(features, dtype=dtype), torch.tensor(relevance, dtype=dtype), draw(st.integers(1, num)), chosen


@quick
@given(tied_inputs())
def test_same_as_reference_with_ties(form: None, case: Any) -> None:
    features, relevance, num_keep, chosen = case
    order = select_one(features, relevance, num_keep, **chosen)
    assert order == greedy_select_reference(features, relevance, num_keep, **chosen)
    assert len(set(order)) == num_keep
    assert set(order) <= set(range(len(features)))


@quick
@given(
    st.integers(0, 10_000),
    st.integers(2, 24),
    st.sampled_from([criteria for criteria in CRITERIA if criteria[0]]),  # without relevance tokens may tie
    st.sampled_from(NORMALIZATIONS),
)
def test_order_of_tokens_does_not_matter(
    form: None, seed: int, num: int, criteria: tuple[bool, bool, bool], normalization: Normalization
) -> None:
    features, relevance = make_tokens("random", num, seed=seed)
    chosen = options(*criteria, normalization)
    permutation = torch.randperm(num, generator=torch.Generator().manual_seed(seed))
    order = select_one(features, relevance, num // 2, **chosen)
    permuted = select_one(features[permutation], relevance[permutation], num // 2, **chosen)
    assert permutation[permuted].tolist() == order


@quick
@given(st.integers(0, 10_000), st.sampled_from(["random", "clustered"]))
def test_coverage_gains_shrink(form: None, seed: int, kind: str) -> None:
    """Check submodularity of facility location: no token's gain grows when the selection grows."""
    features, relevance = make_tokens(kind, 20, seed=seed)
    similarity = cosine_similarity(features[None])[0]
    selected = greedy_select_reference(features, relevance, 20)

    def gains(subset: list[int]) -> Tensor:
        return (similarity - similarity[:, subset].amax(dim=1)).relu().sum(dim=1)

    for step in range(1, 20):
        assert (gains(selected[: step + 1]) <= gains(selected[:step]) + 1e-12).all()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("select", [select_one, greedy_select_reference])
def test_values_that_are_not_finite(select: Callable[..., Any], bad: float) -> None:
    features, relevance = make_tokens("random", 6)
    spoilt = relevance.clone()
    spoilt[3] = bad
    with pytest.raises(InvalidInput, match="relevance"):
        select(features, spoilt, 3)
    assert len(select(features, spoilt, 3, use_relevance=False)) == 3
    features[2, 1] = bad
    with pytest.raises(InvalidInput, match="features"):
        select(features, relevance, 3)


@pytest.mark.parametrize("num_keep", [0, -1, 7, 2.5, "2", None])
@pytest.mark.parametrize("select", [select_one, greedy_select_reference])
def test_num_keep_out_of_range(select: Callable[..., Any], num_keep: Any) -> None:
    with pytest.raises(InvalidInput, match="num_keep"):
        select(*make_tokens("random", 6), num_keep)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"features": torch.ones(6, 4)}, "features"),
        ({"features": torch.ones(2, 6, 4, dtype=torch.int64)}, "features"),
        ({"features": torch.ones(2, 0, 4)}, "features"),
        ({"relevance": None}, "relevance"),
        ({"relevance": torch.ones(2, 5)}, "relevance"),
        ({"relevance": torch.ones(2, 6, dtype=torch.int64)}, "relevance"),
        ({"valid": torch.ones(2, 5, dtype=torch.bool)}, "valid"),
        ({"valid": torch.ones(2, 6)}, "valid"),
        ({"num_keep": [3]}, "num_keep"),
        ({"num_keep": [3, 0]}, "sample 1"),
        ({"valid": torch.tensor([[True] * 6, [True, False] * 3]), "num_keep": 4}, "sample 1"),
        ({"diversity_weight": -1.0}, "diversity_weight"),
        ({"coverage_weight": torch.nan}, "coverage_weight"),
        ({"use_relevance": False, "diversity_weight": 0.0, "coverage_weight": 0.0}, "criteria"),
        ({"normalization": "max"}, "normalization"),
    ],
)
def test_input_that_does_not_fit(change: Any, named: str) -> None:
    arguments = {"features": torch.ones(2, 6, 4), "relevance": torch.ones(2, 6), "num_keep": 3} | change
    with pytest.raises(InvalidInput, match=named):
        greedy_select(**arguments)
