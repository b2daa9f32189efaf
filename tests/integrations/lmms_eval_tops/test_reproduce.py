"""Run `tops reproduce` with lmms-eval itself, and read the tasks that differ from lmms-eval's own."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from lmms_eval_tops.mmbench_cn import accuracy
from lmms_eval_tops.task_files import write_tasks

from tests.conftest import Tops
from tops_engine.errors import InvalidInput
from tops_engine.reproduction.plan import Plan, make_plan
from tops_engine.reproduction.protocols import find_protocol, read_protocols
from tops_engine.reproduction.run import hours_of_all, layer_averages, origin, run_plan, versions_of
from tops_engine.reproduction.table import reproduction_halves, reproduction_table
from tops_engine.settings import ModelSpec

pytestmark = pytest.mark.eval

SAMPLE = 8
BENCHMARKS = read_protocols().benchmarks


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    write_tasks(folder)
    return folder


def plan_of(methods: str = "tops", sample: int = SAMPLE) -> Plan:
    spec = ModelSpec(model="mini", device="cpu")
    return make_plan(find_protocol("mini"), methods, [32], spec, sample=sample, environment={})


def prompt(tasks: Path, task: str, document: dict[str, Any]) -> str:
    """Return the prompt that a task of ours writes for a document."""
    from lmms_eval.utils import load_yaml_config

    config = load_yaml_config(str(tasks / f"{task}.yaml"), mode="full")
    assert config["task"] == task
    options = config["lmms_eval_specific_kwargs"]["default"]
    return str(config["doc_to_text"](document, options))


def test_textvqa_has_ocr_tokens_in_the_prompt_and_lmms_evals_default_has_not(tasks: Path) -> None:
    document = {"question": "what is the brand?", "ocr_tokens": ["NOKIA", "3310"]}
    ours = prompt(tasks, BENCHMARKS["textvqa"].task, document)
    assert ours == (
        "What is the brand?\nReference OCR token: NOKIA, 3310\nAnswer the question using a single word or phrase."
    )
    from lmms_eval.tasks.textvqa.utils import textvqa_doc_to_text

    default = textvqa_doc_to_text(document, {"pre_prompt": "", "post_prompt": "", "ocr": False})
    assert "NOKIA" not in default


def test_mm_vet_asks_the_question_alone(tasks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "any")  # lmms-eval makes its judge when it reads the task
    assert prompt(tasks, BENCHMARKS["mm-vet"].task, {"question": "What is x?"}) == "What is x?"


def test_mmbench_cn_is_scored_without_a_judge() -> None:
    def answer(index: int, prediction: str) -> dict[str, Any]:
        options = {"A": "red", "B": "blue", "C": "nan", "D": "nan", "E": "nan"}
        about = {"index": index, "question": "?", "answer": "A", "category": "c", "L2-category": "l", "split": "dev"}
        return about | options | {"prediction": prediction, "hint": "nan", "source": "s"}

    assert accuracy([answer(1, "A"), answer(2, "A."), answer(3, "B"), answer(4, "B")]) == 50.0


def test_a_smaller_picture_splits_the_questions(tmp_path: Path) -> None:
    plan = plan_of("resize:enlarge=true")
    scores = run_plan(plan, tmp_path, sys.executable)
    assert layer_averages(plan, tmp_path) == {"unpruned": 144.0, "resize:enlarge=true 32": 144.0}
    unpruned, smaller = reproduction_halves(plan, scores)
    assert (unpruned.name, smaller.name) == ("mini-scenes: unpruned", "mini-scenes: resize:enlarge=true 32")
    counts = [half.questions for half in (smaller.easy, smaller.hard) if half is not None]
    assert sum(counts) == SAMPLE
    value = scores["resize:enlarge=true 32"]["mini-scenes"].value
    assert (smaller.easy.questions if smaller.easy else 0) == round(value * SAMPLE / 100)


def test_a_sample_runs_and_the_same_command_continues_it(tmp_path: Path) -> None:
    plan, protocol = plan_of(), find_protocol("mini")
    scores = run_plan(plan, tmp_path, sys.executable)
    assert set(scores) == {"unpruned", "tops 32"}
    averages = layer_averages(plan, tmp_path)
    assert averages == {"unpruned": 144.0, "tops 32": 32.0}
    made = origin(plan, versions_of(sys.executable), "tops reproduce mini")
    assert "lmms-eval 0.7" in made
    assert "seed 0" in made
    table = reproduction_table(plan, protocol, scores, averages, hours_of_all(plan, tmp_path), made)
    assert [row[0] for row in table.rows] == ["unpruned", "tops 32"]
    assert "At this speed" in str(table)
    # As a run that was stopped between the two: the second is made again from its answers, the first not at all.
    journal = tmp_path / "runs.jsonl"
    journal.write_text("".join(journal.read_text().splitlines(keepends=True)[:2]))
    answers = {path: path.read_text() for path in tmp_path.rglob("answers.jsonl")}
    results = len(list((tmp_path / "unpruned").rglob("*_results.json")))
    again = run_plan(plan, tmp_path, sys.executable)
    assert {name: one["mini-scenes"].value for name, one in again.items()} == {
        name: one["mini-scenes"].value for name, one in scores.items()
    }
    assert {path: path.read_text() for path in tmp_path.rglob("answers.jsonl")} == answers
    assert len(list((tmp_path / "unpruned").rglob("*_results.json"))) == results


def test_results_of_another_version_are_not_mixed(tmp_path: Path) -> None:
    (tmp_path / "runs.jsonl").write_text(json.dumps({"format": "tops reproduce 1", "version": "0.0.1"}) + "\n")
    with pytest.raises(InvalidInput, match="version"):
        run_plan(plan_of(), tmp_path, sys.executable)


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(InvalidInput, match="cannot be made"):
        run_plan(plan_of(), tmp_path / "file" / "out", sys.executable)


def test_data_that_is_missing_offline_stops_with_a_sentence(tops: Tops, tmp_path: Path) -> None:
    result = tops(
        "reproduce", "llava-1.5-7b", "--model", "mini", "--device", "cpu", "--benchmarks", "gqa", "--sample", 2,
        "--keep", "64", "--methods", "random", "-o", tmp_path / "out", "--python", sys.executable,
    )  # fmt: skip
    assert result.code == 1
    assert "lmms-eval stopped with status" in result.err
    assert "continues the run" in result.err
