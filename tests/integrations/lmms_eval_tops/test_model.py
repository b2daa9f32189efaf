"""Run lmms-eval itself on a local task of mini's scenes, and compare with `tops bench` on the same questions."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from lmms_eval_tops.mini_scenes import TASK, write_task

from tops_engine.bench.run import run_bench
from tops_engine.engine import shared_engine
from tops_engine.mini.questions import KINDS
from tops_engine.settings import ModelSpec, Pruning

pytestmark = pytest.mark.eval

NUM_SCENES = 4
MODEL = {"model": "mini", "device": "cpu"}


@pytest.fixture(scope="module", autouse=True)
def _offline() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("scenes")
    write_task(path, NUM_SCENES)
    return path


def evaluate(folder: Path, batch_size: int = 8, **arguments: Any) -> dict[str, Any]:
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.tasks import TaskManager

    text = ",".join(f"{name}={value}" for name, value in (MODEL | arguments).items())
    manager = TaskManager("ERROR", include_path=str(folder))
    result = simple_evaluate("tops", text, tasks=[TASK], batch_size=batch_size, task_manager=manager, cli_args=None)
    return dict(result)


@pytest.fixture(scope="module")
def bench_rows() -> dict[float, dict[str, float]]:
    engine = shared_engine(ModelSpec(**MODEL))
    rows = run_bench(engine, [Pruning(keep=0.222)], NUM_SCENES, batch_size=16).rows
    return {row.keep: row.accuracy for row in rows if row.method in ("none", "tops") and isinstance(row.keep, float)}


@pytest.mark.parametrize("batch_size", [1, 8])
@pytest.mark.parametrize("keep", [1.0, 0.222])
def test_accuracy_is_that_of_tops_bench(
    folder: Path, bench_rows: dict[float, dict[str, float]], keep: float, batch_size: int
) -> None:
    result = evaluate(folder, batch_size, keep=keep)
    figures = result["results"][TASK]
    expected = {kind: bench_rows[keep][kind] for kind in ("all", *KINDS)}
    assert {kind: figures[f"{kind},none"] for kind in expected} == pytest.approx(expected)


def test_the_logs_state_the_tokens_of_each_answer_and_of_each_stage(folder: Path) -> None:
    samples = evaluate(folder, keep=0.222)["samples"][TASK]
    (first,) = samples[0]["token_counts"]
    assert first["visual_tokens"] == 144
    assert first["layer_average"] == 32
    assert first["stages"] == [[0, [64]], [3, [16]], [6, [8]]]
    assert first["input_tokens"] > 64
    assert first["output_tokens"] >= 2


def test_a_stopped_run_continues_and_answers_nothing_twice(folder: Path, tmp_path: Path) -> None:
    journal = tmp_path / "answers.jsonl"
    whole = evaluate(folder, keep=0.222, journal=journal)
    lines = journal.read_text().splitlines(keepends=True)
    assert len(lines) == 1 + len(whole["samples"][TASK])
    # As a process that was killed in the middle of a line leaves it; one answer is marked, to see that it is used.
    marked = json.loads(lines[1]) | {"text": "marked"}
    journal.write_text("".join([lines[0], json.dumps(marked) + "\n", *lines[2:6], lines[6][:20]]))
    again = evaluate(folder, keep=0.222, journal=journal)
    keys = [tuple(json.loads(line)["key"]) for line in journal.read_text().splitlines()[1:]]
    assert len(keys) == len(set(keys)) == len(lines) - 1
    answers = [sample["resps"] for sample in again["samples"][TASK]]
    expected = [sample["resps"] for sample in whole["samples"][TASK]]
    place = next(number for number, answer in enumerate(answers) if answer == [["marked"]])
    assert answers[:place] + answers[place + 1 :] == expected[:place] + expected[place + 1 :]


def test_the_command_of_lmms_eval_finds_the_model_and_prints_its_table(folder: Path) -> None:
    command = [sys.executable, "-m", "lmms_eval", "eval", "--model", "tops", "--tasks", TASK]
    command += ["--model_args", "model=mini,device=cpu,keep=0.222", "--include_path", str(folder), "--limit", "4"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"|{TASK}|none" in done.stdout
    assert "|all " in done.stdout


def test_a_wrong_argument_is_one_sentence(folder: Path) -> None:
    from tops_engine.errors import InvalidInput

    with pytest.raises(InvalidInput, match="keep"):
        evaluate(folder, keep=7.5)
