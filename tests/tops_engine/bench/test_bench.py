"""Test `tops bench`: the embedded model, unseen scenes, and the uncertainty that the table reports."""

import json
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pytest
from PIL import Image

from tests.conftest import Tops
from tops_engine.bench.report import BenchResult
from tops_engine.bench.run import OraclePruning, run_bench
from tops_engine.bench.splits import FIRST_SEEDS
from tops_engine.conversation.messages import user_message
from tops_engine.engine import Engine
from tops_engine.errors import InvalidInput
from tops_engine.evaluation.prunings import settings_key
from tops_engine.mini.scenes import generate, is_correct
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


def test_positions_number_all_that_is_measured_the_oracle_too(engine: Engine, tmp_path: Path) -> None:
    path = tmp_path / "bench.jsonl"
    prunings = [Pruning(method="divprune", keep=0.111)]
    result = run_bench(engine, prunings, 3, kinds=["digit"], path=path, positions="original")
    labels = ["none", "oracle", "divprune:positions=original", "random:positions=original"]
    assert [row.method for row in result.rows] == labels
    assert [row.layer_average for row in result.rows[2:]] == [16, 8]
    contiguous = run_bench(engine, prunings, 3, kinds=["digit"])
    for row, other in zip(result.rows[1:], contiguous.rows[1:], strict=True):
        assert (row.layer_average, row.loss_increase != other.loss_increase) == (other.layer_average, True)


def test_relative_accuracy_has_an_interval_that_is_paired_with_the_unpruned_answers(
    engine: Engine, result: BenchResult
) -> None:
    assert [row.relative_interval for row in result.rows] == [None] * len(result.rows), "six scenes are too few"
    enough = run_bench(engine, [Pruning(keep=0.222)], num_scenes=8, kinds=["digit", "shape"])
    assert enough.rows[0].relative_interval == (1.0, 1.0)
    for row in enough.rows:
        low, high = row.relative_interval or (1.0, 0.0)
        assert low <= (row.relative or 0.0) <= high
    assert "95 %" in str(enough.table())


def test_differences_are_paired_by_question_and_clustered_by_scene(engine: Engine, tmp_path: Path) -> None:
    """Compare with a bootstrap written out here, from the answers in the results file."""
    prunings = [Pruning(method=method, keep=0.111) for method in ("tops", "random")]
    kinds, path = ["digit", "describe"], tmp_path / "bench.jsonl"
    result = run_bench(engine, prunings, 8, 4, kinds=kinds, path=path, against=["random"], split="confirm")
    lines = [json.loads(line) for line in path.read_text().splitlines()][1:]
    right = {
        name: np.array([one for line in lines if line["name"] == name for one in line["right"]], float)
        for name in ("none 1.0", "tops 0.111", "random 0.111")
    }
    scenes = [generate(seed, "test") for seed in range(FIRST_SEEDS["confirm"], FIRST_SEEDS["confirm"] + 8)]
    seeds = np.array(
        [
            4 * batch + number
            for batch in (0, 1)
            for kind in ("describe", "digit")
            for number in range(4)
            for question in scenes[4 * batch + number].questions
            if question.kind == kind
        ]
    )
    base, points = right["none 1.0"], 100 * (right["tops 0.111"] - right["random 0.111"])
    tops = result.rows[2]
    (difference,) = tops.differences
    assert result.rows[3].differences == [], "not from itself"
    assert difference.against == "random"
    assert difference.points["all"] == pytest.approx(points.sum() / base.sum())
    generator, drawn = np.random.default_rng(1), []
    for _ in range(2000):
        chosen = np.concatenate([np.flatnonzero(seeds == scene) for scene in generator.integers(0, 8, 8)])
        drawn.append(points[chosen].sum() / max(base[chosen].sum(), 1e-9))
    spread = np.std(drawn)
    # As far out as Student's quantile, 2.365 for eight scenes, is from the normal one.
    level = NormalDist().cdf(-np.sqrt(8 / 7) * 2.365)
    assert difference.intervals["all"] == pytest.approx(np.quantile(drawn, [level, 1 - level]), abs=0.3 * spread)
    assert tops.accuracy["short"] == tops.accuracy["digit"]
    table = str(result.differences_table())
    assert "tops 0.111 minus random" in table
    assert difference.in_words["all"] in table
    assert "8 scenes that confirm" in str(result.table())


def test_a_method_that_is_not_measured_cannot_be_compared_with(engine: Engine) -> None:
    with pytest.raises(InvalidInput, match="Nothing measures 'scope' to compare with; this run measures none, tops"):
        run_bench(engine, [Pruning(keep=0.5)], 1, kinds=["digit"], against=["scope"])


def test_a_schedule_is_named_by_its_stages_and_not_by_the_default_budget(engine: Engine) -> None:
    schedules = ["0:24,4:8", "0:24,4:12"]
    prunings = [Pruning(schedule=schedule) for schedule in schedules]
    result = run_bench(engine, prunings, num_scenes=1, kinds=["digit"])
    rows = result.rows[2:4]
    assert [row.name for row in rows] == [f"tops {schedule}" for schedule in schedules]
    assert [row.keep for row in rows] == [None, None]
    assert [row.layer_average for row in rows] == [16.0, 18.0]
    assert all(f"tops {schedule}" in str(result.table()) for schedule in schedules)


def test_small_words_are_lost_in_a_smaller_picture_and_split_the_questions(engine: Engine) -> None:
    tops, smaller = Pruning(keep=0.222), Pruning(method="resize", keep=0.222, enlarge=True)
    result = run_bench(engine, [tops, smaller], num_scenes=6, batch_size=16, kinds=["word", "colour"])
    rows = {row.name: row for row in result.rows}
    resized = rows["resize:enlarge=true 0.222"]
    assert resized.layer_average == 144, "it saves nothing, and says so"
    assert resized.accuracy["word"] < rows["tops 0.222"].accuracy["word"]
    assert [one.name for one in result.halves] == ["unpruned", "tops 0.222", "resize:enlarge=true 0.222"]
    total, num_right = sum(result.num_questions.values()), round(resized.accuracy["all"] * 10**6)
    for one in result.halves:
        assert one.easy is not None
        assert one.hard is not None
        assert one.easy.questions + one.hard.questions == total
        assert one.easy.questions == round(num_right * total / 10**6)
    both = [(one.easy, one.hard) for one in result.halves if one.easy and one.hard]
    of_tops = sum(half.percent * half.questions for half in both[1]) / total
    assert of_tops == pytest.approx(100 * rows["tops 0.222"].accuracy["all"])
    assert (both[2][0].percent, both[2][1].percent) == (100, 0)
    assert "unpruned" in str(result.halves_table())
    assert BenchResult.model_validate_json(result.model_dump_json()) == result


def test_every_question_is_counted_once(result: BenchResult) -> None:
    scenes = [generate(seed, "test") for seed in range(FIRST_SEEDS["test"], FIRST_SEEDS["test"] + 6)]
    kinds = [question.kind for scene in scenes for question in scene.questions]
    assert result.num_questions == {kind: kinds.count(kind) for kind in sorted(set(kinds))}
    for row in result.rows:
        mean = sum(row.accuracy[kind] * count for kind, count in result.num_questions.items()) / len(kinds)
        assert row.accuracy["all"] == pytest.approx(mean)


def test_a_row_reports_the_tokens_that_ran(result: BenchResult) -> None:
    tops, control = result.rows[2:]
    assert tops.layer_average == pytest.approx(0.222 * 144, abs=0.1)
    assert control.layer_average == 8
    assert (tops.selection_ms or 0) > 0
    assert (tops.first_token_ms or 0) > (tops.selection_ms or 0)


def test_the_oracle_keeps_the_patches_of_the_objects(engine: Engine) -> None:
    scene = generate(FIRST_SEEDS["test"], "test")
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


def test_accuracy_and_loss_are_those_of_asking_one_by_one(engine: Engine, result: BenchResult) -> None:
    """Check that batches, shared vision and scoring in one pass change no result."""
    pruning, right, increases = Pruning(keep=0.222), [], []
    for seed in range(FIRST_SEEDS["test"], FIRST_SEEDS["test"] + 6):
        scene = generate(seed, "test")
        for question in scene.questions:
            if question.kind in ("digit", "colour"):
                messages = [user_message(question.text, scene.image)]
                answer = engine.chat(messages, pruning)
                right.append(is_correct(question, answer.text))
                (plain,) = engine.scored_batch([messages], Pruning(method="none"))
                (pruned,) = engine.scored_batch([messages], pruning, references=[plain.answer.token_ids])
                increases.append(pruned.loss - plain.loss)
    again = run_bench(engine, [pruning], num_scenes=6, batch_size=4, kinds=["digit", "colour"])
    row = again.rows[2]
    assert sorted(again.num_questions) == ["colour", "digit"]
    assert row.accuracy["all"] == pytest.approx(sum(right) / len(right))
    assert row.loss_increase == pytest.approx(sum(increases) / len(increases), abs=1e-4)
    for kind in ("digit", "colour"):
        assert row.accuracy[kind] == result.rows[2].accuracy[kind]


def test_a_method_that_cannot_meet_a_budget_leaves_an_empty_row_with_a_note(engine: Engine) -> None:
    prunings = [Pruning(method="fastv", keep=keep) for keep in (0.5, 0.111)]
    result = run_bench(engine, prunings, num_scenes=2, kinds=["digit"])
    met, unmet = result.rows[2:4]
    assert met.error is None
    assert "cannot be met" in str(unmet.error)
    assert unmet.accuracy == {}
    text = str(result.table())
    assert "fastv 0.111 [1]" in text
    assert "[1] keep=0.111 cannot be met" in text


def test_nothing_that_can_run_is_an_error(engine: Engine) -> None:
    with pytest.raises(InvalidInput, match="cannot be met"):
        run_bench(engine, [Pruning(method="fastv", keep=0.1)], num_scenes=1, kinds=["digit"])
    with pytest.raises(InvalidInput, match=r"Kinds of questions are .*; not smell"):
        run_bench(engine, [Pruning()], num_scenes=1, kinds=["digit", "smell"])


def test_a_stopped_run_continues_and_gives_the_same_figures(engine: Engine, tmp_path: Path) -> None:
    path = tmp_path / "bench.jsonl"
    prunings = [Pruning(method="random", keep=0.3)]

    def run(prunings: list[Pruning]) -> BenchResult:
        return run_bench(engine, prunings, num_scenes=3, batch_size=2, kinds=["digit", "exists"], path=path)

    whole, lines = run(prunings), path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:4]) + lines[4][:20])
    again = run(prunings)
    assert path.read_bytes().startswith(b"".join(lines[:4]))
    timed = {"selection_ms", "first_token_ms"}
    assert [row.model_dump(exclude=timed) for row in again.rows] == [
        row.model_dump(exclude=timed) for row in whole.rows
    ]

    before = path.read_bytes()
    more = run([*prunings, Pruning(method="divprune", keep=0.3)])
    assert path.read_bytes().startswith(before)
    assert more.rows[2] == again.rows[2]
    assert more.rows[3].method == "divprune"
    with pytest.raises(InvalidInput, match=r"another run \(different: scenes\)"):
        run_bench(engine, prunings, num_scenes=2, batch_size=2, kinds=["digit", "exists"], path=path)


def test_the_command_takes_all_methods_and_pruning_files(tops: Tops, tmp_path: Path) -> None:
    (tmp_path / "mine.json").write_text(Pruning(method="tops", keep=0.4, alpha=0.7).model_dump_json())
    common = ("--scenes", 1, "--kinds", "digit", "--device", "cpu", "--json", tmp_path / "figures.json")
    result = tops("bench", "--methods", "all", "--keep", 0.5, *common)
    assert result.code == 0, result.err
    rows = BenchResult.model_validate_json((tmp_path / "figures.json").read_text()).rows
    assert {"tops", "fastv", "divprune", "random", "scope"} <= {row.method for row in rows if row.error is None}

    result = tops("bench", "--pruning", tmp_path / "mine.json", *common)
    assert result.code == 0, result.err
    assert "tops:alpha=0.7 0.4" in result.out


def test_results_that_know_fewer_options_are_continued() -> None:
    pruning = Pruning(method="divprune", keep=0.5)
    resolved = pruning.resolved()
    older = {name: value for name, value in resolved.items() if name not in ("dedup", "tower_keep", "confident")}
    assert settings_key(older) == settings_key(resolved)
    for other in (Pruning(method="divprune", keep=0.4), Pruning(method="divprune", keep=0.5, merge=True)):
        assert settings_key(other.resolved()) != settings_key(resolved)
