"""The figures about TOPS on mini: what is known of the scenes is what gets chosen."""

import pytest
import torch

from benchmarks.mini.stages import LAYERS, RATERS, Batch, measure
from tops_engine.engine import Engine
from tops_engine.mini.scenes import Question, Scene, generate
from tops_engine.settings import ModelSpec


@pytest.fixture(scope="module")
def batch() -> Batch:
    engine = Engine.load(ModelSpec(model="mini", device="cpu"))
    scenes = [generate(11_000_000 + number, "test") for number in range(4)]
    pairs: list[tuple[Scene, Question]] = [
        (scene, question) for scene in scenes for question in scene.questions if question.kind == "colour"
    ]
    return Batch(engine, pairs)


def test_the_truth_keeps_what_the_question_is_about_and_its_opposite_drops_it(batch: Batch) -> None:
    largest = max(len(subject) for subject in batch.subjects)
    before = measure([batch], "before", lambda batch: batch.probe([(0, largest)], first="truth"))
    inside = measure([batch], "inside", lambda batch: batch.probe([(3, largest)], second="truth"))
    assert before["subject_kept"] == inside["subject_kept"] == 100
    blind = measure([batch], "blind", lambda batch: batch.probe([(1, 1)], second="other"))
    assert blind["subject_kept"] == 0
    assert blind["loss_increase"] > before["loss_increase"]


def test_everything_kept_loses_nothing(batch: Batch) -> None:
    row = measure([batch], "all", lambda batch: batch.probe([(0, 144)]))
    assert row["loss_increase"] == pytest.approx(0, abs=1e-5)
    assert row["subject_kept"] == 100


def test_relevance_is_measured_at_each_layer_for_each_choice_of_raters(batch: Batch) -> None:
    found = batch.relevance()
    assert len(found) == (LAYERS - 1) * len(RATERS)
    shares = torch.tensor(list(found.values()))
    assert shares.shape[1] == len(batch.pairs)
    assert ((shares >= 0) & (shares <= 1)).all()
