"""Compare the Triton kernel with the reference: on a GPU if there is one, else in Triton's interpreter."""

import os
import subprocess
import sys
from importlib.metadata import version
from importlib.util import find_spec
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from packaging.version import Version

from tests.tops_engine.selection.test_greedy import CRITERIA, NORMALIZATIONS, make_tokens, options
from tops_engine.selection import Normalization, greedy, greedy_select, greedy_select_reference
from tops_engine.selection.batch import checked_batch
from tops_engine.selection.objective import Objective

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="needs triton")

# Triton reads it when it is first imported, which torch may have done by now: in a process of its own.
RUNS_HERE = DEVICE == "cuda" or os.environ.get("TRITON_INTERPRET") == "1"
runs_kernels = pytest.mark.skipif(not RUNS_HERE, reason="runs in the process of test_in_the_interpreter")
on_a_gpu = pytest.mark.skipif(DEVICE == "cpu", reason="the interpreter would take minutes; needs a GPU")


@pytest.mark.skipif(RUNS_HERE, reason="the tests below run here")
def test_in_the_interpreter() -> None:
    if Version(version("triton")) < Version("3.8") and Version(np.__version__) >= Version("2.4"):
        pytest.skip("The interpreter of Triton 3.6 fails with NumPy 2.4 and newer: it makes numbers of arrays.")
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    subprocess.run([sys.executable, "-m", "pytest", "-x", __file__], env=environment, check=True)


@pytest.mark.skipif(RUNS_HERE, reason="it is compiled where it runs")
@pytest.mark.parametrize("minmax", [False, True])
@pytest.mark.parametrize("num_tokens", [576, 2880])
def test_it_compiles_for_an_h100_without_one(num_tokens: int, minmax: bool) -> None:
    from triton import compile, next_power_of_2
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from tops_engine.selection import greedy_kernel

    pointers = {"order": "*i64", "taken": "*i8", "changed": "*i32", "coverage": "*fp64"}
    pointers |= dict.fromkeys(["similarity", "relevance", "closest"], "*fp32")
    numbers = {"num_tokens": "i32", "num_keep": "i32"}
    numbers |= dict.fromkeys(["diversity_weight", "coverage_weight", "rounding"], "fp32")
    constants = dict.fromkeys(["HAS_RELEVANCE", "HAS_DIVERSITY", "HAS_COVERAGE"], True)
    chosen = {"MINMAX": minmax, "BLOCK": next_power_of_2(num_tokens), "ROWS": greedy_kernel.ROWS}
    constexprs = constants | chosen
    signature = pointers | numbers | dict.fromkeys(constexprs, "constexpr")
    source = ASTSource(greedy_kernel._greedy_loop, signature, constexprs)
    options = {"num_warps": greedy_kernel.num_warps(num_tokens)}
    assert compile(source, target=GPUTarget("cuda", 90, 32), options=options).asm["cubin"]


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(greedy, "_form_for", lambda _: greedy._select_in_kernel)


def kernel_order(features: torch.Tensor, relevance: torch.Tensor | None, num_keep: Any, **chosen: Any) -> list[Any]:
    given = None if relevance is None else relevance.float().to(DEVICE)
    return greedy_select(features.float().to(DEVICE), given, num_keep, **chosen).tolist()


@runs_kernels
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("criteria", CRITERIA)
@pytest.mark.usefixtures("kernel")
def test_same_tokens_as_the_reference(normalization: Normalization, criteria: tuple[bool, bool, bool]) -> None:
    features, relevance = make_tokens("clustered", 45, seed=3)
    chosen = options(*criteria, normalization)
    expected = greedy_select_reference(features.float(), relevance.float(), 20, **chosen)
    assert kernel_order(features[None], relevance[None], 20, **chosen) == [expected]


@runs_kernels
@pytest.mark.usefixtures("kernel")
def test_more_changes_at_once_than_rows_of_a_piece() -> None:
    features, relevance = make_tokens("random", 130, size=4)
    expected = greedy_select_reference(features.float(), relevance.float(), 40)
    assert kernel_order(features[None], relevance[None], 40) == [expected]


@runs_kernels
@pytest.mark.usefixtures("kernel")
def test_samples_of_different_sizes() -> None:
    lengths, counts = (21, 9, 16), (12, 9, 1)
    samples = [make_tokens("clustered", length, seed=seed) for seed, length in enumerate(lengths)]
    pad = torch.nn.utils.rnn.pad_sequence
    features, relevance = (pad([sample[i] for sample in samples], batch_first=True) for i in (0, 1))
    valid = torch.arange(21) < torch.tensor(lengths)[:, None]
    orders = kernel_order(features, relevance, counts, valid=valid.to(DEVICE))
    for order, sample, count in zip(orders, samples, counts, strict=True):
        expected = greedy_select_reference(sample[0].float(), sample[1].float(), count)
        assert order == expected + [-1] * (12 - count)


@runs_kernels
@pytest.mark.usefixtures("kernel")
def test_identical_tokens_come_in_order() -> None:
    features = torch.randn(16, generator=torch.Generator().manual_seed(1)).expand(9, -1)
    for criteria, normalization in product(CRITERIA, NORMALIZATIONS):
        chosen = options(*criteria, normalization)
        assert kernel_order(features[None], torch.full((1, 9), 0.3), 9, **chosen) == [list(range(9))]


@runs_kernels
@pytest.mark.parametrize(
    ("num_tokens", "num_keep"),
    [(300, 75), *(pytest.param(*size, marks=[pytest.mark.cuda, on_a_gpu]) for size in ((576, 128), (2880, 640)))],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.usefixtures("kernel")
def test_published_sizes(num_tokens: int, num_keep: int, dtype: torch.dtype) -> None:
    features, relevance = make_tokens("clustered", num_tokens, size=64, seed=1)
    features = features.to(dtype)
    order = greedy_select(features.to(DEVICE)[None], relevance.float().to(DEVICE)[None], num_keep)
    batch = checked_batch(features[None], relevance[None].float(), num_keep, None)
    assert order.tolist() == greedy._select_on_cpu(batch, Objective(0.5, 0.5, True, "mean")).tolist()
