"""First call: compare the kernel with the host, run the tests that need a GPU, and give one 7B answer, also pruned."""

import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from typing import Any
from unittest import mock

import torch

from benchmarks.gpu.call import Bench, Part
from benchmarks.gpu.expected import line
from benchmarks.latency import answer_tokens, engine_times, generated_tokens
from benchmarks.published_sizes import SIZES
from benchmarks.selection import measure_on
from benchmarks.shapes import question
from tops_engine.selection import greedy, greedy_cluster
from tops_engine.settings import Pruning

SHAPE = "llava-1.5-7b"

#: Test files in the order of importance, with the time limit of each in seconds.
TESTS = {
    "tests/tops_engine/selection/test_greedy_kernel.py": 40,
    "tests/tops_engine/selection/test_greedy_cluster.py": 30,
    "tests/tops_engine/generation/test_static_cuda.py": 60,
    "tests/tops_engine/generation/test_recorded_prefill.py": 40,
    "tests/tops_engine/generation/test_waiting.py": 30,
    "tests/tops_engine/families/parts/test_pillow_resize.py": 20,
    "tests/tops_engine/selection/test_similarity.py": 20,
    "tests/tops_engine/test_engine.py": 30,
}

#: Replaces the options in pyproject.toml, which need plugins that a GPU machine may lack.
PYTEST_OPTIONS = ["--override-ini", "addopts=--import-mode=importlib", "-p", "no:cacheprovider", "-m", "cuda"]


def kernel(bench: Bench) -> dict[str, Any]:
    """Compare the greedy kernels with the host's form, and time them."""
    sizes = [(40, 10), (30, 30)] if bench.rehearsal else [(576, 128), (2880, 640)]
    width, repeats = (64, 1) if bench.rehearsal else (4096, 3)
    rows, lines = [], []
    for size in sizes:
        for name, chosen in _kernels(bench).items():
            with chosen:
                row = measure_on(bench.device, *size, 1, width, repeats)
            rows.append(row | {"kernel": name})
            same = "same tokens as on the host" if row["same_as_on_host"] else "OTHER TOKENS than on the host"
            measured = f"{name}: {1e3 * row['queued_s']:.2f} ms, {same}"
            figure = f"{row['tokens']} -> {row['keep']}"
            lines.append(f"{figure}, {measured}" if bench.rehearsal else line(f"selection {figure}", measured))
    return {"results": rows, "summary": lines}


def _kernels(bench: Bench) -> dict[str, AbstractContextManager[Any]]:
    """Return a context for each kernel that the device runs."""
    if bench.device == "cuda" and greedy_cluster.runs_on(torch.device("cuda")):
        return {name: mock.patch.object(greedy, "CLUSTER_KERNEL", name == "cluster") for name in ("triton", "cluster")}
    return {"only": nullcontext()}


def cuda_tests(bench: Bench) -> dict[str, Any]:
    """Run the tests that need a GPU: each file in a process of its own with a time limit, a few side by side.

    A kernel that fails can make the GPU unusable to its process, so files do not share one. Starting a process takes 5
    seconds of a core.
    """

    def outcome(path: str) -> str:
        command = [sys.executable, "-m", "pytest", *PYTEST_OPTIONS, path]
        seconds = TESTS[path] if bench.rehearsal else min(TESTS[path], bench.seconds_left)
        try:
            done = subprocess.run(command, timeout=max(seconds, 1), capture_output=True, text=True, check=False)
        except subprocess.TimeoutExpired:
            return f"took more than {seconds:.0f} s"
        failed = re.findall(r"^(?:FAILED|ERROR) .*", done.stdout, re.MULTILINE)
        last = (done.stdout.strip() or done.stderr.strip() or "no output").splitlines()[-1].strip("= ")
        return "; ".join([last, *failed])

    with ThreadPoolExecutor(max(1, min(4, (os.cpu_count() or 1) // 4))) as threads:
        outcomes = dict(zip(TESTS, threads.map(outcome, TESTS), strict=True))
    return {"results": outcomes, "summary": [f"{path}: {outcome}" for path, outcome in outcomes.items()]}


def one_answer(bench: Bench) -> dict[str, Any]:
    """Answer one question unpruned, pruned and by transformers' generate."""
    family, num_new = bench.model(SHAPE), 16
    conversation = question(SIZES[SHAPE], 60)
    for keep in (1.0, 0.222):  # compiles kernels and warms up
        engine_times(family, conversation, Pruning(keep=keep), 2)
    times = {keep: engine_times(family, conversation, Pruning(keep=keep), num_new) for keep in (1.0, 0.222)}
    ours = answer_tokens(family, conversation, Pruning(keep=1.0), num_new)
    theirs = generated_tokens(family, conversation, num_new)
    same = len(_common(ours, theirs))
    peak = torch.cuda.max_memory_allocated() if bench.device == "cuda" else 0
    lines = [
        f"keep {keep}: first token {1e3 * run['first_token']:.1f} ms, further tokens {1e3 * run['next_token']:.2f} ms"
        for keep, run in times.items()
    ]
    lines.append(f"{same} of the first {len(theirs)} tokens are those of generate (half precision can tie)")
    lines.append(f"peak memory {peak / 1e9:.1f} GB")
    return {
        "results": {str(keep): run for keep, run in times.items()},
        "tokens": {"engine": ours, "generate": theirs},
        "peak_bytes": peak,
        "summary": lines,
    }


def _common(ours: list[int], theirs: list[int]) -> list[int]:
    """Return the common beginning of two answers."""
    for index, (mine, other) in enumerate(zip(ours, theirs, strict=False)):
        if mine != other:
            return ours[:index]
    return ours[: len(theirs)]


PARTS = [Part("kernel", 25, kernel), Part("one answer", 35, one_answer), Part("cuda tests", 20, cuda_tests)]
