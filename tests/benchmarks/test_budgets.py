"""Test the measurement of budgets: what it makes of measured answers is what a cascade does when it runs."""

from pathlib import Path

import pytest

from benchmarks import budgets
from tops_engine.bench.run import GENERATION, question_batches
from tops_engine.bench.splits import FIRST_SEEDS
from tops_engine.conversation.messages import user_message
from tops_engine.engine import Engine
from tops_engine.mini.questions import KINDS
from tops_engine.mini.scenes import is_correct
from tops_engine.settings import ModelSpec, Pruning


@pytest.mark.full
def test_a_cascade_made_of_its_budgets_is_the_cascade_that_runs(tmp_path: Path) -> None:
    result = budgets.measure(1, "test", tmp_path / "journal.jsonl")
    assert result == budgets.measure(1, "test", tmp_path / "journal.jsonl")
    engine = Engine.load(ModelSpec(model="mini", device="cpu", dtype="float32"))
    pruning = Pruning(keep=(0.111, 1.0), confident=0.5)
    right, kept = [], []
    for _, pairs, _ in question_batches(FIRST_SEEDS["test"], 1, budgets.BATCH, KINDS):
        conversations = [[user_message(question.text, scene.image)] for scene, question in pairs]
        answers = engine.batch(conversations, pruning, GENERATION)
        right += [is_correct(question, one.text) for (_, question), one in zip(pairs, answers, strict=True)]
        kept += [answer.usage.kept_fraction for answer in answers]
    (row,) = [
        row
        for row in result["rows"]
        if (row["form"], row["budget"], row.get("confident")) == ("tops", "0.111+1.0", 0.5)
    ]
    assert row["mean_keep"] == pytest.approx(sum(kept) / len(kept))
    assert row["relative"] == pytest.approx(100 * sum(right) / len(right) / result["unpruned"])
