"""The scores of benchmarks from lmms-eval's logs of samples, such that questions can be resampled."""

import json
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tops_engine.errors import InvalidInput
from tops_engine.evaluation.intervals import Figure, cluster_sums, resampled_totals
from tops_engine.reproduction.protocols import Benchmark

Sample = dict[str, Any]

#: Fields of a document that name its picture; questions about one picture are resampled together.
PICTURE_FIELDS = ("imageId", "image_source", "image_id", "scene")

#: The parts of MME.
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")


@dataclass(frozen=True)
class Scored:
    """The answers of one run to one benchmark.

    Attributes
    ----------
    value : the score.
    sums : float64 [clusters, columns], what the score is computed from; None if only the score is known.
    figure : computes the score from totals of the columns.
    clusters : what each row of ``sums`` belongs to.
    answered : the score of each question, from 0 to 1, by its number; empty if only the score of all is known.
    pictures : the picture that each of these questions is about.
    """

    value: float
    sums: NDArray[np.float64] | None = None
    figure: Figure | None = None
    clusters: tuple[Hashable, ...] = ()
    answered: Mapping[Hashable, float] = field(default_factory=dict)
    pictures: Mapping[Hashable, Hashable] = field(default_factory=dict)


def read_samples(path: Path) -> list[Sample]:
    """Read a log of samples.

    Raises
    ------
    InvalidInput
        If the file cannot be read or is damaged.
    """
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]
    except (OSError, ValueError) as error:
        raise InvalidInput(f"The log of samples {path} cannot be read: {error}.") from error


def score(benchmark: Benchmark, samples: Sequence[Sample], reported: float | None) -> Scored:
    """Return the score of a run.

    Parameters
    ----------
    samples : lmms-eval's log of the task.
    reported : lmms-eval's own figure for the metric.

    Raises
    ------
    InvalidInput
        If the log holds no answers, or the figure is missing.
    """
    if benchmark.score == "reported":
        if reported is None:
            raise InvalidInput(f"lmms-eval reports no {benchmark.metric} for {benchmark.task}.")
        return Scored(benchmark.factor * reported)
    if not samples:
        raise InvalidInput(f"The log of {benchmark.task} holds no answers.")
    scores = {sample["doc_id"]: _answered(benchmark, sample) for sample in samples}
    answered = {number: of_question for number, of_question in scores.items() if of_question is not None}
    pictures = {sample["doc_id"]: _picture(sample) for sample in samples}
    return replace(SCORES[benchmark.score](benchmark, samples), answered=answered, pictures=pictures)


def paired_draws(pruned: Scored, unpruned: Scored, seed: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the scores of two runs over the same resampled questions: float64 [RESAMPLES] each.

    A score without questions is the same in every draw.

    Raises
    ------
    InvalidInput
        If the runs answered different questions.
    """
    if pruned.sums is None or unpruned.sums is None or pruned.figure is None or unpruned.figure is None:
        return np.full(1, pruned.value), np.full(1, unpruned.value)
    if pruned.clusters != unpruned.clusters:
        raise InvalidInput("The pruned and the unpruned run answered different questions; run both again.")
    columns = pruned.sums.shape[1]
    totals = resampled_totals(np.concatenate([pruned.sums, unpruned.sums], axis=1), seed)
    return pruned.figure(totals[:, :columns]), unpruned.figure(totals[:, columns:])


def _answered(benchmark: Benchmark, sample: Sample) -> float | None:
    """Return the score of one question, from 0 to 1; None if the benchmark does not count it."""
    if benchmark.score == "pope":
        answer = sample[benchmark.metric]
        return float(answer["prediction"] == answer["ground_truth"])
    if benchmark.score == "mme":
        one = _of_mme(sample, benchmark)
        return None if one is None else float(one["score"])
    return float(sample[benchmark.metric])


def _picture(sample: Sample) -> Hashable:
    document = sample.get("doc", {})
    return next((document[field] for field in PICTURE_FIELDS if document.get(field) is not None), sample["doc_id"])


def _scored(columns: Sequence[Sequence[float]], clusters: Sequence[Hashable], figure: Figure) -> Scored:
    # Both runs of a pair have to have their clusters in one order, whatever the order of their logs.
    order = sorted(range(len(clusters)), key=lambda place: str(clusters[place]))
    ordered = [clusters[place] for place in order]
    sums = cluster_sums([[column[place] for place in order] for column in columns], ordered)
    return Scored(float(figure(sums.sum(axis=0))), sums, figure, tuple(dict.fromkeys(ordered)))


def _mean(benchmark: Benchmark, samples: Sequence[Sample]) -> Scored:
    values = [float(sample[benchmark.metric]) for sample in samples]
    columns = [values, [1.0] * len(values)]
    return _scored(columns, [_picture(one) for one in samples], lambda sums: 100 * sums[..., 0] / _above(sums[..., 1]))


def _pope(benchmark: Benchmark, samples: Sequence[Sample]) -> Scored:
    """Score POPE: the mean of the F1 scores of its splits, in percent."""
    splits = sorted({str(sample["doc"].get("category", "")) for sample in samples})
    columns: list[list[float]] = []
    for split in splits:
        hits, said, true = [], [], []
        for sample in samples:
            answer, of_split = sample[benchmark.metric], str(sample["doc"].get("category", "")) == split
            says, is_true = answer["prediction"] == "yes", answer["ground_truth"] == "yes"
            hits.append(float(of_split and says and is_true))
            said.append(float(of_split and says))
            true.append(float(of_split and is_true))
        columns += [hits, said, true]

    def figure(sums: NDArray[np.float64]) -> NDArray[np.float64]:
        scores = [
            200 * sums[..., place] / _above(sums[..., place + 1] + sums[..., place + 2])
            for place in range(0, 3 * len(splits), 3)
        ]
        return np.mean(scores, axis=0)

    return _scored(columns, [_picture(sample) for sample in samples], figure)


def _mme(benchmark: Benchmark, samples: Sequence[Sample]) -> Scored:
    """Score MME: over its categories, the sum of the accuracy and the share of pictures with both answers right."""
    answers = [_of_mme(sample, benchmark) for sample in samples]
    wanted = [one for one in answers if one is not None]
    pairs: dict[tuple[str, str], list[float]] = {}
    for one in wanted:
        pairs.setdefault((one["category"], one["question_id"]), []).append(float(one["score"]))
    categories = sorted({category for category, _ in pairs})
    columns: list[list[float]] = []
    for category in categories:
        own = [scores if of == category else [] for (of, _), scores in pairs.items()]
        columns.append([100 * (sum(scores) / len(scores) + (sum(scores) == 2)) if scores else 0.0 for scores in own])
        columns.append([float(bool(scores)) for scores in own])

    def figure(sums: NDArray[np.float64]) -> NDArray[np.float64]:
        places = range(0, 2 * len(categories), 2)
        return np.sum([sums[..., place] / _above(sums[..., place + 1]) for place in places], axis=0)

    return _scored(columns, list(pairs), figure)


def _of_mme(sample: Sample, benchmark: Benchmark) -> dict[str, Any] | None:
    """Return the score of an answer with its question; None if the benchmark is about perception and it is not."""
    one = sample.get("mme_perception_score") or sample.get("mme_cognition_score")
    return one if one and (benchmark.metric == "mme_total" or one["category"] not in COGNITION) else None


SCORES: dict[str, Callable[[Benchmark, Sequence[Sample]], Scored]] = {"mean": _mean, "pope": _pope, "mme": _mme}


def _above(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return values with 0 replaced, for divisions."""
    return np.maximum(values, 1e-9)
