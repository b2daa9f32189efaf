"""Measure accuracy against mean visual tokens on mini: fixed budgets, allocations and cascades, in two forms of TOPS.

    python -m benchmarks.budgets --scenes 256 --json benchmarks/results/mini-budgets.json

The questions are those of `tops bench` about the scenes of the split ``confirm``, on which nothing was ever tuned; the
thresholds of the cascades were chosen on the split ``test``. Every pruning answers the same questions, so that the
differences are paired. An allocation divides a budget among 64 questions of one kind.

A cascade is made of answers that were measured: each fixed budget is asked as the first of a cascade with 1.0 that is
always sure, which reports how sure the model is. The answer of a cascade is that of its first budget that is sure
enough, and it costs all budgets up to that one. A test compares this with a cascade that runs.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel

from tops_engine.bench.run import GENERATION, question_batches
from tops_engine.bench.splits import FIRST_SEEDS, Split
from tops_engine.cli.progress import progress_bar
from tops_engine.conversation.messages import user_message
from tops_engine.engine import Engine
from tops_engine.evaluation.intervals import difference_interval, relative_interval
from tops_engine.evaluation.plotting import line_style, require_matplotlib, save_figure
from tops_engine.evaluation.prunings import UNPRUNED
from tops_engine.journal import Journal
from tops_engine.mini.questions import KINDS
from tops_engine.mini.scenes import Question, Scene, is_correct
from tops_engine.settings import ModelSpec, Pruning

FORMS = ("tops", "tops:stages=first")
FIXED = (0.056, 0.111, 0.222, 0.333, 0.5)
DIVIDED = (0.111, 0.222)
ALLOCATIONS = ("coverage", "erank", "spectral")
CASCADES = ((0.056, 0.222), (0.111, 0.222), (0.111, 1.0), (0.222, 1.0))
THRESHOLDS = (0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9)
#: Chosen on the split ``test`` as the cheapest with 99 % of the unpruned model's right answers: budgets and threshold.
CHOSEN = {"tops": ((0.222, 1.0), 0.5), "tops:stages=first": ((0.222, 1.0), 0.35)}
#: A threshold that every answer reaches.
ALWAYS_SURE = 1e-30
BATCH = 64

Row = dict[str, Any]


class Asked(NamedTuple):
    """What is asked with: a form of TOPS, the rule that divides the budget, and the budget; None is unpruned."""

    form: str
    rule: str
    keep: float | None

    def pruning(self) -> Pruning:
        """Return the pruning to run."""
        if self.keep is None:
            return UNPRUNED
        if self.rule == "fixed":
            return Pruning.from_label(f"{self.form}:confident={ALWAYS_SURE}", (self.keep, 1.0))
        return Pruning.from_label(f"{self.form}:allocation={self.rule}", self.keep)


class Line(BaseModel):
    """The answers of one batch: whether they are right, what each read as a share, and how sure the model is."""

    batch: int
    asked: Asked
    right: list[bool]
    kept: list[float]
    sure: list[float]


class Figures(NamedTuple):
    """The same of all questions, in order."""

    right: list[float]
    kept: list[float]
    sure: list[float]


def all_asked() -> list[Asked]:
    """Return everything that is measured, the unpruned model first."""
    fixed = [Asked(form, "fixed", keep) for form in FORMS for keep in FIXED]
    divided = [Asked(form, rule, keep) for form in FORMS for rule in ALLOCATIONS for keep in DIVIDED]
    return [Asked("none", "fixed", None), *fixed, *divided]


def ask(engine: Engine, number: int, pairs: Sequence[tuple[Scene, Question]]) -> Iterator[Line]:
    """Ask the questions of a batch with everything; their pictures are encoded once."""
    conversations = [[user_message(question.text, scene.image)] for scene, question in pairs]
    prepared = engine.prepare(conversations)
    for asked in all_asked():
        answers = [one.answer for one in engine.scored_batch(prepared, asked.pruning(), GENERATION)]
        cascades = [one.usage.cascade for one in answers]
        yield Line(
            batch=number,
            asked=asked,
            right=[is_correct(question, one.text) for (_, question), one in zip(pairs, answers, strict=True)],
            kept=[one.usage.kept_fraction for one in answers],
            sure=[1.0 if of is None else of.steps[0].confidence or 0.0 for of in cascades],
        )


def rows(figures: dict[Asked, Figures], seeds: Sequence[int]) -> list[Row]:
    """Return a row for each fixed budget, allocation and cascade.

    Each has its cost, the accuracy relative to the unpruned model's with its interval, and the difference from a fixed
    budget: an allocation from the same budget, a cascade from the smallest one that costs at least as much.
    """
    base = figures[Asked("none", "fixed", None)]
    found = []
    for form in FORMS:
        fixed = {keep: figures[Asked(form, "fixed", keep)] for keep in FIXED} | {1.0: base}
        for keep in FIXED:
            found.append(_row(form, "fixed", f"{keep}", fixed[keep], base, seeds))
        for rule in ALLOCATIONS:
            for keep in DIVIDED:
                row = _row(form, rule, f"{keep}", figures[Asked(form, rule, keep)], base, seeds)
                found.append(row | _difference(figures[Asked(form, rule, keep)], keep, fixed[keep], base, seeds))
        for keeps in CASCADES:
            for threshold in THRESHOLDS:
                cascade = in_cascade([fixed[keep] for keep in keeps], threshold)
                name = "+".join(map(str, keeps))
                row = _row(form, "cascade", name, cascade, base, seeds) | {"confident": threshold}
                beside = next((keep for keep in fixed if _mean(fixed[keep].kept) >= row["mean_keep"]), 1.0)
                found.append(row | _difference(cascade, beside, fixed[beside], base, seeds))
                found[-1]["chosen"] = CHOSEN[form] == (keeps, threshold)
    return found


def in_cascade(steps: Sequence[Figures], threshold: float) -> Figures:
    """Return what a cascade does, from the answers of each of its budgets."""
    right, kept = [], []
    for number in range(len(steps[0].right)):
        cost = 0.0
        for place, step in enumerate(steps, start=1):
            cost += step.kept[number]
            if place == len(steps) or step.sure[number] >= threshold:
                right.append(step.right[number])
                break
        kept.append(cost)
    return Figures(right, kept, [])


def _row(form: str, kind: str, budget: str, of: Figures, base: Figures, seeds: Sequence[int]) -> Row:
    interval = relative_interval(of.right, base.right, seeds)
    about = {"form": form, "kind": kind, "budget": budget, "mean_keep": _mean(of.kept)}
    return about | {"relative": interval.value, "interval": [interval.low, interval.high]}


def _difference(of: Figures, keep: float, fixed: Figures, base: Figures, seeds: Sequence[int]) -> Row:
    interval = difference_interval(of.right, fixed.right, base.right, seeds)
    return {"against": keep, "points": interval.value, "points_interval": [interval.low, interval.high]}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def measure(num_scenes: int, split: Split, path: Path | None) -> Row:
    """Ask all questions and return the results; a stopped run continues its journal."""
    engine = Engine.load(ModelSpec(model="mini", device="cpu", dtype="float32"))
    header = {"format": "tops budgets 1", "split": split, "scenes": num_scenes, "batch": BATCH}
    journal = Journal(path, header)
    lines = [Line.model_validate(record) for record in journal.records()]
    known = {line.batch for line in lines}
    seeds: list[int] = []
    with progress_bar("scenes") as progress:
        done = 0.0
        batches = question_batches(FIRST_SEEDS[split], num_scenes, BATCH, KINDS)
        for number, (of_batch, pairs, worth) in enumerate(batches):
            seeds += of_batch
            if number not in known:
                new = list(ask(engine, number, pairs))
                journal.append([line.model_dump(mode="json") for line in new])
                lines += new
            done += worth
            progress(int(done), num_scenes)
    figures = {asked: Figures([], [], []) for asked in all_asked()}
    for line in sorted(lines, key=lambda line: line.batch):
        figures[line.asked].right.extend(map(float, line.right))
        figures[line.asked].kept.extend(line.kept)
        figures[line.asked].sure.extend(line.sure)
    return {
        "model": "mini",
        "split": split,
        "scenes": num_scenes,
        "questions": len(seeds),
        "unpruned": _mean(figures[all_asked()[0]].right),
        "rows": rows(figures, seeds),
    }


def plot(result: Row, path: Path) -> None:
    """Draw relative accuracy against mean tokens, a panel for each form of TOPS."""
    pyplot = require_matplotlib("--plot")
    figure, panels = pyplot.subplots(1, len(FORMS), figsize=(11, 4.4), sharey=True, layout="constrained")
    for panel, form in zip(panels, FORMS, strict=True):
        own = [row for row in result["rows"] if row["form"] == form]
        lines = {("fixed", ""): [row for row in own if row["kind"] == "fixed"]}
        lines |= {(rule, ""): [row for row in own if row["kind"] == rule] for rule in ALLOCATIONS}
        for keeps in CASCADES:
            name = "+".join(map(str, keeps))
            lines["cascade", name] = [row for row in own if row["kind"] == "cascade" and row["budget"] == name]
        for number, ((kind, name), rows_of) in enumerate(lines.items()):
            rows_of = sorted(rows_of, key=lambda row: row["mean_keep"])
            points = [row["mean_keep"] for row in rows_of], [row["relative"] for row in rows_of]
            panel.plot(*points, **line_style(number, f"{kind} {name}".strip()))
        panel.axhline(99, color="grey", linestyle=":")
        panel.set(title=form, xlabel="mean share of the visual tokens read", ylim=(65, 101), xlim=(0, 1))
        panel.grid(alpha=0.25)
    panels[0].set_ylabel("right answers, % of unpruned")
    panels[-1].legend(fontsize=8, loc="lower right", frameon=False)
    figure.suptitle(f"mini, {result['scenes']} scenes of the split {result['split']}")
    save_figure(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=256)
    parser.add_argument("--split", choices=list(FIRST_SEEDS), default="confirm")
    parser.add_argument("--journal", type=Path, help="JSONL file; a stopped run continues it")
    parser.add_argument("--json", type=Path, help="write the results here")
    parser.add_argument("--plot", type=Path, help="draw the results into this picture")
    arguments = parser.parse_args()
    result = measure(arguments.scenes, arguments.split, arguments.journal)
    for row in result["rows"]:
        name = f"{row['form']} {row['kind']} {row['budget']} {row.get('confident', '')}"
        print(f"{name:60} {row['mean_keep']:.3f} {row['relative']:.1f} {row.get('points', 0.0):+.1f}")
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    if arguments.plot:
        plot(result, arguments.plot)


if __name__ == "__main__":
    main()
