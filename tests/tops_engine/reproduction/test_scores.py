"""Test scores from logs of samples against the definitions, written out plainly, and their intervals."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tops_engine.errors import InvalidInput
from tops_engine.reproduction.plan import make_plan
from tops_engine.reproduction.protocols import find_protocol, read_protocols
from tops_engine.reproduction.scores import Scored, paired_draws, read_samples, score
from tops_engine.reproduction.table import relative_accuracy, reproduction_halves, reproduction_table
from tops_engine.settings import ModelSpec

BENCHMARKS = read_protocols().benchmarks
Samples = list[dict[str, Any]]


def gqa(share: float, seed: int = 0, num_questions: int = 60) -> Samples:
    drawn = random.Random(seed)
    return [
        {"doc_id": number, "doc": {"imageId": f"p{number // 3}"}, "exact_match": float(drawn.random() < share)}
        for number in range(num_questions)
    ]


def pope(seed: int) -> Samples:
    drawn = random.Random(seed)
    samples = []
    for number in range(90):
        answer = {"prediction": drawn.choice(["yes", "no"]), "ground_truth": drawn.choice(["yes", "no"])}
        document = {"category": ("random", "popular", "adversarial")[number % 3], "image_source": f"p{number % 30}"}
        samples.append({"doc_id": number, "doc": document, "pope_f1_score": answer})
    return samples


def mme(seed: int) -> Samples:
    drawn = random.Random(seed)
    samples = []
    for number in range(80):
        category = ("OCR", "color", "code_reasoning")[number // 2 % 3]
        field = "mme_cognition_score" if category == "code_reasoning" else "mme_perception_score"
        answer = {"category": category, "question_id": f"q{number // 2}", "score": float(drawn.random() < 0.7)}
        samples.append({"doc_id": number, "doc": {}, field: answer})
    return samples


def test_a_mean_is_in_percent() -> None:
    samples = gqa(0.6)
    assert score(BENCHMARKS["gqa"], samples, None).value == pytest.approx(
        100 * np.mean([sample["exact_match"] for sample in samples])
    )


def test_pope_is_the_mean_of_the_f1_scores_of_its_splits() -> None:
    samples, scores = pope(0), []
    for split in ("random", "popular", "adversarial"):
        pairs = [
            (one["pope_f1_score"]["prediction"], one["pope_f1_score"]["ground_truth"])
            for one in samples
            if one["doc"]["category"] == split
        ]
        precision = pairs.count(("yes", "yes")) / sum(said == "yes" for said, _ in pairs)
        recall = pairs.count(("yes", "yes")) / sum(true == "yes" for _, true in pairs)
        scores.append(100 * 2 * precision * recall / (precision + recall))
    assert score(BENCHMARKS["pope"], samples, 0.123).value == pytest.approx(np.mean(scores))


@pytest.mark.parametrize(("name", "categories"), [("mme", 2), ("mme-total", 3)])
def test_mme_adds_the_accuracy_and_that_of_pairs_over_categories(name: str, categories: int) -> None:
    samples, total = mme(1), 0.0
    for category in ("OCR", "color", "code_reasoning")[:categories]:
        pairs: dict[str, list[float]] = {}
        for sample in samples:
            answer = sample.get("mme_perception_score") or sample["mme_cognition_score"]
            if answer["category"] == category:
                pairs.setdefault(answer["question_id"], []).append(answer["score"])
        total += sum(100 * sum(pair) / 2 + 100 * (sum(pair) == 2) for pair in pairs.values()) / len(pairs)
    assert score(BENCHMARKS[name], samples, None).value == pytest.approx(total)


def test_the_order_of_the_log_does_not_matter() -> None:
    samples = pope(2)
    shuffled = random.Random(1).sample(samples, len(samples))
    first, second = (score(BENCHMARKS["pope"], one, None) for one in (samples, shuffled))
    assert first.value == pytest.approx(second.value)
    assert first.clusters == second.clusters
    ours, theirs = paired_draws(first, second, 0)
    np.testing.assert_allclose(ours, theirs)


def test_a_reported_figure_is_brought_to_percent_and_has_to_be_there() -> None:
    assert score(BENCHMARKS["seed"], [], 0.605).value == pytest.approx(60.5)
    assert score(BENCHMARKS["mmb"], [], 64.7).value == 64.7
    with pytest.raises(InvalidInput, match="reports no"):
        score(BENCHMARKS["mmb"], [], None)
    with pytest.raises(InvalidInput, match="no answers"):
        score(BENCHMARKS["gqa"], [], None)


def test_runs_about_different_questions_are_not_paired() -> None:
    first, second = score(BENCHMARKS["gqa"], gqa(0.5), None), score(BENCHMARKS["gqa"], gqa(0.5, 0, 30), None)
    with pytest.raises(InvalidInput, match="different questions"):
        paired_draws(first, second, 0)


def scores_of(share: float, seed: int) -> dict[str, Scored]:
    return {
        "gqa": score(BENCHMARKS["gqa"], gqa(share, seed), None),
        "pope": score(BENCHMARKS["pope"], pope(seed), None),
        "mmb": score(BENCHMARKS["mmb"], [], 60.0),
    }


@pytest.mark.parametrize("paper", ["2606.27161", "2502.11501"])
def test_the_relative_accuracy_has_a_paired_interval(paper: str) -> None:
    protocol = find_protocol("llava-1.5-7b", paper=paper)
    unpruned, pruned = scores_of(0.9, 3), scores_of(0.6, 3)
    same = relative_accuracy(protocol, unpruned, unpruned)
    assert (same.value, same.low, same.high) == pytest.approx((100, 100, 100))
    lower = relative_accuracy(protocol, pruned, unpruned)
    assert lower.bounds is not None
    assert lower.bounds[0] < lower.value < lower.bounds[1] < 100


def test_scores_without_questions_have_no_interval() -> None:
    protocol = find_protocol("llava-1.5-7b")
    reported = [{"mmb": score(BENCHMARKS["mmb"], [], value)} for value in (54.0, 60.0)]
    relative = relative_accuracy(protocol, *reported)
    assert relative.value == pytest.approx(90.0)
    assert relative.bounds is None


def test_the_table_has_ours_the_papers_and_the_difference() -> None:
    protocol = find_protocol("llava-1.5-7b", "11")
    plan = make_plan(protocol, "scope", [64], ModelSpec(model="x"), ["gqa", "pope", "mmb"], sample=60, environment={})
    scores = {"unpruned": scores_of(0.9, 3), "scope 64": scores_of(0.8, 3)}
    table = reproduction_table(plan, protocol, scores, {"unpruned": 576.0, "scope 64": 64.0}, 1.5, "Made by x.")
    unpruned, scope = table.rows
    assert unpruned[1].endswith("(61.9)")
    assert scope[1].endswith("(58.3)")
    assert scope[4] == "64.0"
    assert scope[-2] == "96.0[1]"
    relative = relative_accuracy(protocol, scores["scope 64"], scores["unpruned"])
    assert scope[-1] == f"{relative.value - 96.0:+.1f}"
    assert "other benchmarks" in str(table)
    assert "about 1.5 hours" in str(table)
    assert table.notes[-1] == "Made by x."


def test_questions_of_each_benchmark_are_split_by_a_smaller_picture() -> None:
    protocol = find_protocol("llava-1.5-7b", "11")
    methods = "scope,resize:enlarge=true"
    plan = make_plan(protocol, methods, [64], ModelSpec(model="x"), ["gqa", "pope", "mmb"], environment={})
    names = [run.name for run in plan.runs]
    scores = {name: scores_of(share, seed) for name, share, seed in zip(names, (0.9, 0.7, 0.5), (3, 4, 5), strict=True)}
    found = {one.name: one for one in reproduction_halves(plan, scores)}
    assert list(found) == [f"{benchmark}: {name}" for benchmark in ("gqa", "pope") for name in names]
    right = {name: [sample["exact_match"] for sample in gqa(*how)] for name, how in zip(
        names, ((0.9, 3), (0.7, 4), (0.5, 5)), strict=True
    )}  # fmt: skip
    for name in names:
        half = found[f"gqa: {name}"].hard
        assert half is not None
        values = [one for one, easy in zip(right[name], right[names[2]], strict=True) if not easy]
        assert half.questions == len(values)
        assert half.percent == pytest.approx(100 * sum(values) / len(values))


def test_of_pope_and_mme_each_question_has_a_score() -> None:
    answered = score(BENCHMARKS["pope"], pope(1), None).answered
    assert answered == {
        one["doc_id"]: float(one["pope_f1_score"]["prediction"] == one["pope_f1_score"]["ground_truth"])
        for one in pope(1)
    }
    perception = score(BENCHMARKS["mme"], mme(1), None).answered
    assert set(perception) == {one["doc_id"] for one in mme(1) if "mme_perception_score" in one}
    assert len(score(BENCHMARKS["mme-total"], mme(1), None).answered) == 80


def test_a_damaged_log_is_named(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"doc_id": 0}\n{"doc')
    with pytest.raises(InvalidInput, match=r"log\.jsonl cannot be read"):
        read_samples(path)
