"""The verdict on methods follows from the files with results, and says what is not measured."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tools import method_tables
from tops_engine.bench.report import BenchResult, BenchRow


def row(method: str, keep: float, relative: float, half_width: float | None = None) -> BenchRow:
    interval = None if half_width is None else (relative - half_width, relative + half_width)
    return BenchRow(
        method=method, keep=keep, accuracy={"all": relative}, relative=relative, relative_interval=interval,
        loss_increase=1 - relative,
    )  # fmt: skip


def write(folder: Path, name: str, scenes: int, rows: list[BenchRow]) -> None:
    controls = [row("none", 1.0, 1.0), row("oracle", 1.0, 1.0)]
    result = BenchResult(
        model="mini", device="cpu", num_scenes=scenes, num_questions={"all": 9}, batch_size=1, rows=controls + rows
    )
    (folder / name).write_text(result.model_dump_json(), encoding="utf-8")


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a run of 100 scenes and one of 500, and no times."""
    write(tmp_path, "mini-methods.json", 100, [row("scope", 0.5, 0.99), row("fastv", 0.5, 0.95)])
    of_500 = [row("scope", 0.5, 0.90, 0.02), row("tops", 0.5, 0.92, 0.02), row("trim", 0.5, 0.97, 0.01)]
    write(tmp_path, "mini-test.json", 500, of_500)
    monkeypatch.setattr(method_tables, "RESULTS", tmp_path)
    monkeypatch.setattr(method_tables, "TIMES", tmp_path / "methods-time.json")
    method_tables.measured.cache_clear()
    yield tmp_path
    method_tables.measured.cache_clear()


def test_a_method_has_the_figures_of_the_run_with_the_most_scenes(results: Path) -> None:
    found = {cells[0]: cells[1:3] for cells in method_tables.answers()[1:]}
    assert found == {
        "`trim`": ["500", "97.0 (96.0-98.0)"],
        "`fastv`": ["100", "95.0"],
        "`tops`": ["500", "92.0 (90.0-94.0)"],
        "`scope`": ["500", "90.0 (88.0-92.0)"],
    }


def test_the_best_at_a_budget_stands_with_those_that_its_interval_does_not_tell_apart(results: Path) -> None:
    best, no_text, in_vllm, fastest = (cells[1] for cells in method_tables.wanted()[1:])
    assert best == "`trim` 97.0"
    # TOPS reads the text in its second stage and TRIM the question.
    assert no_text == in_vllm == "`scope` 90.0"
    assert fastest == "not measured"


def test_what_is_not_measured_is_named(results: Path) -> None:
    accuracy, times, few = method_tables.not_measured().splitlines()
    assert "`divprune`" in accuracy
    assert "`scope`" not in accuracy
    assert "`evs`" not in accuracy  # mini takes no videos
    assert times == "- Time to the first token: no method yet."
    assert "100" in few


def test_times_that_were_measured_fill_the_tables(results: Path) -> None:
    rows = [
        {"method": "scope", "keep": 0.5, "error": None, "seconds": {"selection": 0.002}, "first_token_ratio": 0.7},
        {"method": "tops", "keep": 0.5, "error": None, "seconds": {"selection": 0.001}, "first_token_ratio": 0.6},
        {"method": "tops", "keep": 0.111, "error": "cannot be met"},
    ]
    method_tables.TIMES.write_text(json.dumps({"results": rows}))
    assert method_tables.wanted()[-1] == ["fastest first token", "`tops` 60 %, `scope` 70 %", *["not measured"] * 3]
    assert method_tables.times()[1:] == [
        ["`tops`", "1.00", "60", *[""] * 6],
        ["`scope`", "2.00", "70", *[""] * 6],
    ]
