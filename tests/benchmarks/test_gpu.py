"""Run the GPU benchmarks on the CPU: the same parts on tiny shapes."""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import throughput
from benchmarks.gpu import __main__ as gpu
from benchmarks.gpu import rest, smoke
from benchmarks.gpu.call import Bench, Part, run_call
from benchmarks.published_sizes import SIZES
from benchmarks.shapes import build, question
from benchmarks.tiny_sizes import tiny
from tops_engine.generation.run import Run


@pytest.fixture(autouse=True)
def tiny_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(SIZES):
        monkeypatch.setitem(SIZES, name, tiny(SIZES[name]))
    monkeypatch.setattr(gpu, "use_tiny_sizes", lambda: None)


def bench(seconds: float = 60.0) -> Bench:
    return Bench("cpu", torch.float32, True, time.perf_counter() + seconds)


@pytest.mark.parametrize(
    "call", ["smoke", *(pytest.param(call, marks=pytest.mark.full) for call in ("headline", "rest"))]
)
def test_a_call_runs_on_the_cpu(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # One file of tests says as much as five here, where all of them are skipped.
    monkeypatch.setattr(smoke, "TESTS", {"tests/tops_engine/selection/test_similarity.py": 60})
    output = tmp_path / "results.json"
    monkeypatch.setattr(sys, "argv", ["gpu", call, "--json", str(output), "--rehearse"])
    gpu.main()
    results = json.loads(output.read_text())
    parts, _ = gpu.CALLS[call]
    assert list(results[call]) == [part.name for part in parts]
    assert all(result["summary"] and result["wall_s"] > 0 for result in results[call].values())
    assert results["machine"]["torch"] == torch.__version__
    shown = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("    ") for line in shown[-45:]) >= len(parts)


def test_the_limits_hold_all_parts() -> None:
    for parts, limit in gpu.CALLS.values():
        assert sum(part.seconds for part in parts) <= limit <= 240


def test_a_call_keeps_what_is_done_and_names_what_failed(tmp_path: Path) -> None:
    begun: list[str] = []

    def work(name: str, fails: bool = False) -> Callable[[Bench], dict[str, Any]]:
        def run(_: Bench) -> dict[str, Any]:
            begun.append(name)
            if fails:
                raise RuntimeError("the kernel does not compile")
            return {"results": 1, "summary": ["one"]}

        return run

    path = tmp_path / "results.json"
    parts = [Part("one", 0, work("one")), Part("two", 0, work("two", fails=True)), Part("three", 0, work("three"))]
    assert not run_call("smoke", parts, bench(), path)
    assert json.loads(path.read_text())["smoke"]["two"]["error"] == "RuntimeError: the kernel does not compile"
    parts[1] = Part("two", 0, work("two"))
    assert run_call("smoke", parts, bench(), path)
    assert begun == ["one", "two", "three", "two"]


def test_a_part_that_does_not_fit_into_the_time_left_does_not_start(tmp_path: Path) -> None:
    short = bench(5.0)
    short.rehearsal = False
    part = Part("long", 60, lambda _: {"summary": []})
    assert not run_call("rest", [part], short, tmp_path / "results.json")
    error = json.loads((tmp_path / "results.json").read_text())["rest"]["long"]["error"]
    assert error.startswith("not started: it needs 60 s")


def test_a_model_is_built_once_a_call() -> None:
    shared = bench()
    family = shared.model(rest.SHAPE)
    assert shared.model(rest.SHAPE) is family
    shared.drop_models()
    assert shared.model(rest.SHAPE) is not family


def test_the_largest_batch_is_halved_until_it_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    shape = SIZES["llava-1.5-7b"]
    family, conversations = build(shape, "cpu", torch.float32), [question(shape, 9, seed) for seed in range(6)]
    start: Callable[[Run], Any] = Run.start

    def little_memory(run: Run) -> Any:
        if len(run._sequences) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return start(run)

    assert throughput.largest_batch(family, conversations, 0.5, 1) == 6
    monkeypatch.setattr(Run, "start", little_memory)
    assert throughput.largest_batch(family, conversations, 0.5, 1) == 1  # 6, 3, 1
    assert throughput.largest_batch(family, conversations[:4], 0.5, 1) == 2


def test_each_budget_is_judged_by_its_best() -> None:
    rows = [
        {"keep": keep, "batch": batch, "speed": speed}
        for keep, batch, speed in [(1.0, 8, 3), (1.0, 4, 4), (0.1, 8, 10)]
    ]
    best = throughput.best_of(rows, [1.0, 0.1], "speed")
    assert [(row["batch"], row["times_the_first"]) for row in best] == [(4, 1.0), (8, 2.5)]
