"""What is to run on a GPU one day runs here: the same scripts with the same options, on tiny shapes."""

import importlib
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import gpu, selection, throughput
from benchmarks.published_sizes import SIZES, Published
from benchmarks.shapes import build, question
from tests.benchmarks.test_shapes import narrow
from tops_engine.generation.run import Run


def tiny(published: Published) -> Published:
    """Eight layers, and a picture of one tile."""
    small = narrow(published)
    text, vision = small.config["text_config"], small.config["vision_config"]
    text |= {"num_hidden_layers": 8}
    if published.config["model_type"] == "qwen2_5_vl":
        vision.pop("num_hidden_layers")  # its other name for the depth
        text |= {"hidden_size": 512}  # its rotary embedding has heads of 128
        vision |= {"depth": 4, "fullatt_block_indexes": [3], "num_heads": 2, "out_hidden_size": 512}
    return replace(small, picture=(224, 224), presets=None)


@pytest.fixture(autouse=True)
def tiny_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(SIZES):
        monkeypatch.setitem(SIZES, name, tiny(SIZES[name]))


#: Less of everything that takes time.
LESS = {"--device": "cpu", "--rounds": "1", "--repeats": "1"}


@pytest.mark.parametrize("name", [name for name in gpu.COMMANDS if name not in ("tests", "selection")])
def test_what_runs_on_a_gpu_runs_here(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (module, *options), _ = gpu.COMMANDS[name]
    for option, value in LESS.items():
        if option in options:
            options[options.index(option) + 1] = value
    if "--compile" in options:
        options.remove("--compile")  # takes a minute, and has tests of its own
        options += ["--tokens", "3"]
    if module == "benchmarks.throughput":
        options += ["--pictures", "4", "--tokens", "2"]
    output = tmp_path / "result.json"
    monkeypatch.setattr(sys, "argv", [module, *options, "--json", str(output)])
    importlib.import_module(module).main()
    result = json.loads(output.read_text())
    assert result["results"]
    assert result["torch"] == torch.__version__


def test_selection_on_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    result = selection.report_on("cpu", 64, 1, False, [(40, 10), (30, 30)])
    assert [(row["tokens"], row["images"]) for row in result["results"]] == [(40, 1), (40, 8), (30, 1), (30, 8)]
    assert all(row["same_as_on_host"] and row["queued_s"] > 0 for row in result["results"])


def test_the_largest_batch_is_halved_until_it_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    shape = SIZES["llava-1.5-7b"]
    family, conversations = build(shape, "cpu", torch.float32), [question(shape, 9, seed) for seed in range(6)]
    start: Callable[[Run], Any] = Run.start

    def little_memory(run: Run) -> Any:
        if len(run._prompts) > 2:
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


def test_what_fails_does_not_stop_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    commands = {
        "one": (["this_module_does_not_exist"], 60),
        "tests": (["http.server", "0"], 1),
        "two": (["this_module_does_not_exist"], 60),
        "three": (["benchmarks.shapes", "smolvlm-256m"], 120),
    }
    output = tmp_path / "results.json"
    output.write_text(json.dumps({"two": {"measured": "before"}}))
    monkeypatch.setattr(gpu, "COMMANDS", commands)
    monkeypatch.setattr(sys, "argv", ["gpu", "--json", str(output)])
    with pytest.raises(SystemExit, match="Not done: one, tests"):
        gpu.main()
    assert "tests: took too long" in capfd.readouterr().out
    results = json.loads(output.read_text())
    assert set(results) == {"two", "three"}
    assert results["three"]["device"] == "meta"
