"""The depth experiment: training that was stopped takes the same steps, and its models are measured in every way."""

import json
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from benchmarks import depth_report
from benchmarks.depth import features, measurement, training
from benchmarks.depth.early import EarlyReader
from benchmarks.depth.measurement import depths, named_share
from benchmarks.depth.models import SHAPES, Shape, build, processor
from benchmarks.depth.training import Plan, train
from benchmarks.mini.packing import Packer, Speller
from tops_engine.mini.scenes import Question

TINY, PLAN = Shape(2, 32, 1), Plan(scenes=6, steps=4, check_every=2, check_scenes=2)


@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "WHOLE", (220, 1))
    monkeypatch.setattr(training, "PRUNED", (160, 1))
    monkeypatch.setattr(training, "LOG_EVERY", 1)


@pytest.mark.full
@pytest.mark.usefixtures("small_steps")
def test_a_model_whose_training_was_stopped_is_the_same_and_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    features.compute(tmp_path, 2)
    with pytest.raises(SystemExit, match="features of 2 scenes are ready, 6 are"):
        train(tmp_path, TINY, PLAN)
    features.compute(tmp_path, PLAN.scenes)  # extends the file
    entries: list[dict[str, Any]] = []
    assert train(tmp_path, TINY, PLAN, entries.append)
    assert [entry["step"] for entry in entries] == [1, 2, 3, 4]
    assert entries[-1]["all"]["loss"] > 0  # on unseen scenes
    whole = load_file(tmp_path / TINY.name / "model" / "model.safetensors")

    stopped = tmp_path / "stopped"
    stopped.mkdir()
    for name in ("features.npy", "features.txt"):
        (stopped / name).symlink_to(tmp_path / name)
    assert not train(stopped, TINY, PLAN, lambda _: signal.raise_signal(signal.SIGTERM))
    assert not (stopped / TINY.name / "model").exists()
    assert train(stopped, TINY, PLAN, entries.append)
    assert [entry["step"] for entry in entries[4:]] == [2, 3, 4]
    continued = load_file(stopped / TINY.name / "model" / "model.safetensors")
    assert whole.keys() == continued.keys()
    assert all(whole[name].equal(continued[name]) for name in whole)

    monkeypatch.setattr(depth_report, "SHAPES", (TINY,))
    another = tmp_path / TINY.name / "model"
    models = ["mini", TINY.name, depth_report.SMOLLM2]
    results = depth_report.report(tmp_path, 2, 1, smollm2=another, only=models)
    assert results == depth_report.report(tmp_path, 2, 1, smollm2=another, only=models)  # from the journals
    assert results[2:] == depth_report.report(tmp_path, 2, 1, smollm2=another, only=models[2:])
    assert [(one["model"], one["layers"], one["scenes"]) for one in results] == [
        ("mini", 8, 2),
        (TINY.name, 2, 2),
        (depth_report.SMOLLM2, 2, 2),
    ]
    assert not results[2]["drops_tokens"]
    mini = results[0]
    assert mini["unpruned"]["objects"]["value"] > mini["pruned"][-1]["objects"]["value"]
    curve = [one["value"] for one in mini["read"]["short"]["curve"]]
    assert [one["gone_from"] for one in mini["read"]["short"]["curve"]] == [*range(1, 8), 8]
    assert curve[0] < curve[-1]
    json.dumps(results)
    assert TINY.name in str(depth_report.table(results))
    depth_report.plot(results, tmp_path / "depth.png")
    assert (tmp_path / "depth.png").stat().st_size > 10_000


def test_the_steps_of_a_model_without_dropping_hold_whole_pictures() -> None:
    packer = Packer(Speller(processor().tokenizer), features.GRID, "train", list_share=1.0)
    for step in range(3):
        places, rows = training.draw(Shape(2, 32, 1, drops_tokens=False), step, PLAN._replace(scenes=50), packer)
        assert len(places) == len(rows) == training.WHOLE[1] + 1
        for row in rows[:-1]:
            assert sum(number < 0 for number in row.ids) == features.GRID**2 * len(row.pictures)


def test_text_reads_the_picture_only_before_the_layer_from_which_it_is_gone() -> None:
    packer = Packer(Speller(processor().tokenizer), features.GRID, "train", list_share=1.0)
    _, rows = training.draw(TINY, 3, PLAN._replace(scenes=50), packer)
    rows = rows[:2]
    pictures = torch.randn(3, features.GRID**2, features.WIDTH).bfloat16()
    reader = EarlyReader(build(TINY), torch.device("cpu"))

    def logits(gone_from: int | None, seen: Tensor) -> Tensor:
        reader.gone_from = gone_from
        with torch.inference_mode():
            return reader.logits(rows, seen, [0, 1])[0]

    assert logits(2, pictures).equal(logits(None, pictures))
    assert logits(0, pictures).equal(logits(0, pictures.flip(0)))
    assert not logits(1, pictures).allclose(logits(1, pictures.flip(0)))
    assert not logits(1, pictures).allclose(logits(None, pictures))


def test_models_that_are_not_measured_again_stay_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "depth.json"
    about = {"split": "test", "depth_scenes": 50}
    smollm2, mini, eight = (
        {"model": name, "scenes": 100} for name in (depth_report.SMOLLM2, "mini", "8-layers-seed-1")
    )
    first = about | {"models": [mini, smollm2]}
    assert depth_report.with_earlier(first, path) == first
    path.write_text(json.dumps(first))
    again = smollm2 | {"layers": 30}
    made = depth_report.with_earlier(about | {"models": [eight, again]}, path)
    assert made == about | {"models": [mini, eight, again]}
    for other in (about | {"models": [eight | {"scenes": 10}]}, about | {"depth_scenes": 1, "models": [eight]}):
        with pytest.raises(SystemExit, match="are of other scenes; name another file"):
            depth_report.with_earlier(other, path)


def test_half_of_the_picture_is_read_where_the_score_is_half_way() -> None:
    assert depth_report.half_depth(np.array([0.2, 0.2, 0.4, 0.8, 0.8]), [2, 4, 6, 8, 10]) == pytest.approx(0.65)
    assert depth_report.half_depth(np.array([0.5, 0.5]), [4, 8]) == 0.5


def test_a_list_is_judged_by_the_objects_that_it_names() -> None:
    question = Question("describe", "List all objects.", "red star, digit 7, word KITE, red star", ())
    assert named_share(question, question.answer) == 1
    assert named_share(question, "red star, digit 7") == 0.5
    assert named_share(question, "red star, red star, red star, digit 7, word KITE") == 0.8
    assert named_share(question, "") == 0


def test_a_deep_model_is_read_at_eleven_layers() -> None:
    assert depths(8) == [1, 2, 3, 4, 5, 6, 7]
    assert depths(24) == list(range(2, 24, 2))
    assert all(len(depths(shape.layers)) <= measurement.MOST_DEPTHS for shape in SHAPES)
