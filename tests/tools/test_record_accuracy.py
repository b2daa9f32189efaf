"""The most important groups can be measured first; what they measured is kept for a run of everything."""

from pathlib import Path

import pytest

from tools import record_accuracy
from tools.accuracy_tables import read
from tools.record_accuracy import FIRST, ONE_BUDGET, Group, groups_for, measure
from tops_engine.engine import Engine
from tops_engine.settings import ModelSpec


@pytest.mark.full
def test_what_a_first_group_measured_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record_accuracy, "JOURNALS", tmp_path)
    engine = Engine.load(ModelSpec(model="mini", device="cpu"))
    path, journal = tmp_path / "mini-confirm.json", tmp_path / "accuracy-confirm.jsonl"
    first, second = Group("tops", (0.111,)), Group("tops:normalization=minmax", (0.111,))
    measure(engine, "confirm", path, 1, [first])
    before, journalled = read(path), journal.read_bytes()
    measure(engine, "confirm", path, 1, [first, second])
    after = read(path)
    assert journal.read_bytes().startswith(journalled)
    assert [row.name for row in before.rows[2:]] == ["tops 0.111", "random 0.056"]
    assert [row.name for row in after.rows[2:]] == ["tops 0.111", "tops:normalization=minmax 0.111", "random 0.056"]
    assert after.split == "confirm"
    assert after.rows[2].accuracy == before.rows[2].accuracy
    assert [one.against for one in after.rows[3].differences] == ["tops"]


def test_a_run_of_everything_begins_with_the_most_important_groups() -> None:
    everything = groups_for(None)[-1].prunings()
    assert groups_for(2) == FIRST[:2] == groups_for(None)[:2]
    assert all(pruning in everything for group in (*FIRST, ONE_BUDGET) for pruning in group.prunings())
