"""Compare the CUDA C++ kernel with the reference: compiled for the host where a compiler is, and on a GPU."""

import ctypes
import shutil
import subprocess
from collections.abc import Callable
from importlib import util
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tops_engine.selection.test_greedy import CRITERIA, NORMALIZATIONS, make_tokens, options
from tops_engine.device.nvrtc import CompilationFailed, compile_for
from tops_engine.selection import Normalization, greedy, greedy_cluster, greedy_select, greedy_select_reference
from tops_engine.selection.batch import checked_batch
from tops_engine.selection.objective import Objective

COMPILER = shutil.which("g++")
on_the_host = pytest.mark.skipif(COMPILER is None, reason="needs g++")
on_a_gpu = pytest.mark.skipif(
    not (torch.cuda.is_available() and greedy_cluster.runs_on(torch.device("cuda"))),
    reason="needs a GPU with thread block clusters",
)

HOST = """
#include "{header}"
#include "{kernel}"
extern "C" void run(
    int num_images, long long* order, const float* similarity, const float* relevance, const float* closest,
    const double* coverage, const signed char* taken, int num_tokens, int num_keep, double diversity_weight,
    double coverage_weight, double rounding
) {{
    run_cluster(num_images, BLOCKS, THREADS, [=] {{
        greedy_cluster(
            order, similarity, relevance, closest, coverage, taken, num_tokens, num_keep, diversity_weight,
            coverage_weight, rounding
        );
    }});
}}
"""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Callable[[dict[str, int]], Any]:
    """Return a function that compiles the kernel for the host, with blocks of 32 threads."""
    folder = tmp_path_factory.mktemp("kernel")
    source = folder / "kernel.cpp"
    header = Path(__file__).parents[2] / "support" / "cluster_on_host.h"
    source.write_text(HOST.format(header=header, kernel=greedy_cluster.SOURCE))
    libraries: dict[tuple[int, ...], Any] = {}

    def compile_kernel(macros: dict[str, int]) -> Any:
        key = tuple(macros.values())
        if key not in libraries:
            library = folder / f"{len(libraries)}.so"
            command = [str(COMPILER), "-std=c++20", "-O1", "-pthread", "-shared", "-fPIC"]
            command += [f"-D{name}={value}" for name, value in macros.items()]
            subprocess.run([*command, "-o", str(library), str(source)], check=True)
            libraries[key] = ctypes.CDLL(str(library)).run
        return libraries[key]

    return compile_kernel


@pytest.fixture
def kernel(compiled: Callable[[dict[str, int]], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Select with the kernel on the host: two blocks of an image, each thread with up to three tokens."""

    def finish_selection(
        order: torch.Tensor,
        similarity: torch.Tensor,
        relevance: torch.Tensor | None,
        closest: torch.Tensor,
        coverage: torch.Tensor | None,
        taken: torch.Tensor,
        weights: tuple[float, float],
        rounding: float,
        minmax: bool,
    ) -> None:
        num_images, num_tokens = closest.shape
        macros = greedy_cluster.constants(
            num_tokens,
            has_relevance=relevance is not None,
            has_diversity=weights[0] > 0,
            has_coverage=coverage is not None,
            minmax=minmax,
            blocks=2,
        )
        each = -(-num_tokens // 2)
        macros |= {"THREADS": 32, "PER_THREAD": -(-each // 32)}
        tensors = [order, similarity, relevance, closest, coverage, taken.to(torch.int8)]
        tensors = [None if tensor is None else tensor.contiguous() for tensor in tensors]
        addresses = [ctypes.c_void_p(None if tensor is None else tensor.data_ptr()) for tensor in tensors]
        scalars = [ctypes.c_double(value) for value in (*weights, rounding)]
        assert order.is_contiguous()
        compiled(macros)(num_images, *addresses, num_tokens, order.shape[1], *scalars)

    monkeypatch.setattr(greedy, "_kernel_for", lambda _: finish_selection)
    monkeypatch.setattr(greedy, "_form_for", lambda _: greedy._select_in_kernel)


def order_of(features: torch.Tensor, relevance: torch.Tensor | None, num_keep: Any, **chosen: Any) -> list[Any]:
    return greedy_select(
        features.float(), None if relevance is None else relevance.float(), num_keep, **chosen
    ).tolist()


def all_cases() -> list[Any]:
    """Return all criteria and normalizations; only the paper's own is in the default run."""
    cases = product(CRITERIA, NORMALIZATIONS)
    return [case if case == (CRITERIA[0], "mean") else pytest.param(*case, marks=pytest.mark.full) for case in cases]


@on_the_host
@pytest.mark.parametrize(("criteria", "normalization"), all_cases())
@pytest.mark.usefixtures("kernel")
def test_same_tokens_as_the_reference(criteria: tuple[bool, bool, bool], normalization: Normalization) -> None:
    features, relevance = make_tokens("clustered", 90, seed=3)
    chosen = options(*criteria, normalization)
    expected = greedy_select_reference(features.float(), relevance.float(), 30, **chosen)
    assert order_of(features[None], relevance[None], 30, **chosen) == [expected]


@on_the_host
@pytest.mark.full
@pytest.mark.usefixtures("kernel")
def test_more_changes_at_once_than_threads() -> None:
    features, relevance = make_tokens("random", 170, size=4)
    expected = greedy_select_reference(features.float(), relevance.float(), 170)
    assert order_of(features[None], relevance[None], 170) == [expected]


@on_the_host
@pytest.mark.usefixtures("kernel")
def test_samples_of_different_sizes() -> None:
    lengths, counts = (70, 9, 66), (20, 9, 1)
    samples = [make_tokens("clustered", length, seed=seed) for seed, length in enumerate(lengths)]
    pad = torch.nn.utils.rnn.pad_sequence
    features, relevance = (pad([sample[i] for sample in samples], batch_first=True) for i in (0, 1))
    valid = torch.arange(70) < torch.tensor(lengths)[:, None]
    orders = order_of(features, relevance, counts, valid=valid)
    for order, sample, count in zip(orders, samples, counts, strict=True):
        expected = greedy_select_reference(sample[0].float(), sample[1].float(), count)
        assert order == expected + [-1] * (20 - count)


@on_the_host
@pytest.mark.full
@pytest.mark.usefixtures("kernel")
def test_identical_tokens_come_in_order() -> None:
    features = torch.randn(16, generator=torch.Generator().manual_seed(1)).expand(9, -1)
    for criteria, normalization in product(CRITERIA, NORMALIZATIONS):
        chosen = options(*criteria, normalization)
        assert order_of(features[None], torch.full((1, 9), 0.3), 9, **chosen) == [list(range(9))]


def nvrtc() -> ctypes.CDLL | None:
    """Return NVIDIA's compiler library from the package nvidia-cuda-nvrtc-cu12 or nvidia-cuda-nvrtc."""
    for package in ("nvidia.cuda_nvrtc", "nvidia.cu13"):
        try:
            found = util.find_spec(package)
        except ModuleNotFoundError:
            continue
        for folder in found.submodule_search_locations or () if found else ():
            for library in sorted(Path(folder).glob("lib/libnvrtc.so.*")):
                return ctypes.CDLL(str(library))
    return None


@pytest.mark.skipif(nvrtc() is None, reason="needs pip install nvidia-cuda-nvrtc-cu12")
@pytest.mark.parametrize("minmax", [False, True])
@pytest.mark.parametrize("num_tokens", [576, 2880, 8192])
def test_it_compiles_for_an_h100_without_one(num_tokens: int, minmax: bool) -> None:
    library = nvrtc()
    assert library is not None
    macros = greedy_cluster.constants(
        num_tokens, has_relevance=True, has_diversity=True, has_coverage=True, minmax=minmax
    )
    source = greedy_cluster.SOURCE.read_text()
    assert compile_for(library, source, "sm_90", macros).startswith(b"\x7fELF")
    with pytest.raises(CompilationFailed, match="BLOCKS"):
        compile_for(library, source, "sm_90", {})


@on_a_gpu
@pytest.mark.cuda
@pytest.mark.parametrize(("num_tokens", "num_keep"), [(45, 45), (576, 128), (2880, 640), (8192, 200)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_published_sizes(
    num_tokens: int, num_keep: int, dtype: torch.dtype, normalization: Normalization, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(greedy, "CLUSTER_KERNEL", True)
    features, relevance = make_tokens("clustered", num_tokens, size=64, seed=1)
    features, relevance = features.to(dtype)[None], relevance.float()[None]
    order = greedy_select(features.cuda(), relevance.cuda(), num_keep, normalization=normalization)
    batch = checked_batch(features, relevance, num_keep, None)
    assert order.tolist() == greedy._select_on_cpu(batch, Objective(0.5, 0.5, True, normalization)).tolist()
