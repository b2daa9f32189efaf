"""`tops bench`: the embedded model, unseen scenes, and what the table says of its own worth."""

from pathlib import Path

import pytest
from PIL import Image

from tops_engine.engine import Engine
from tops_engine.messages import user_message
from tops_engine.mini.bench import FIRST_SEED, BenchResult, OraclePruning, run_bench
from tops_engine.mini.scenes import generate
from tops_engine.settings import Generation, ModelSpec, Pruning


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine.load(ModelSpec(model="mini", device="cpu"))


@pytest.fixture(scope="module")
def result(engine: Engine) -> BenchResult:
    return run_bench(engine, [Pruning(keep=0.222)], num_scenes=6, batch_size=16)


def test_the_unpruned_model_the_oracle_and_the_control_are_always_there(result: BenchResult) -> None:
    assert [(row.method, row.keep) for row in result.rows] == [
        ("none", 1.0),
        ("oracle", None),
        ("tops", 0.222),
        ("random", 0.056),
    ]
    unpruned = result.rows[0]
    assert unpruned.layer_average == 144
    assert unpruned.relative == 1.0
    assert unpruned.loss_increase == 0.0


def test_every_question_is_counted_once(result: BenchResult) -> None:
    scenes = [generate(seed, "test") for seed in range(FIRST_SEED, FIRST_SEED + 6)]
    kinds = [question.kind for scene in scenes for question in scene.questions]
    assert result.num_questions == {kind: kinds.count(kind) for kind in sorted(set(kinds))}
    for row in result.rows:
        mean = sum(row.accuracy[kind] * count for kind, count in result.num_questions.items()) / len(kinds)
        assert row.accuracy["all"] == pytest.approx(mean)


def test_a_row_reports_the_tokens_that_ran(result: BenchResult) -> None:
    tops, control = result.rows[2:]
    assert tops.layer_average == pytest.approx(0.222 * 144, abs=0.1)
    assert control.layer_average == 8
    assert min(tops.selection_ms, tops.first_token_ms) > 0


def test_the_oracle_keeps_the_patches_of_the_objects(engine: Engine) -> None:
    scene = generate(FIRST_SEED, "test")
    patches = scene.object_patches(12)
    pruning = OraclePruning(method="none", keep=1.0, patches=(tuple(patches),))
    answer = engine.chat([user_message("?", scene.image)], pruning, Generation(max_tokens=1))
    ((_, (kept,)),) = answer.token_map.stages
    assert kept.tolist() == patches


def test_results_survive_json_and_draw(result: BenchResult, tmp_path: Path) -> None:
    assert BenchResult.model_validate_json(result.model_dump_json()) == result
    result.plot(tmp_path / "plot.png")
    assert Image.open(tmp_path / "plot.png").size[0] > 500
    assert "random 5.6 % loses" in result.validity()
