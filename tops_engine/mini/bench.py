"""What pruning costs in accuracy, measured on the embedded model and scenes it has never seen."""

import statistics
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

import torch
from pydantic import BaseModel
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from tops_engine.budget import Keep, Stage
from tops_engine.engine import Engine
from tops_engine.errors import MissingDependency
from tops_engine.messages import user_message
from tops_engine.methods import METHODS, Method, Selection, VisualTokens
from tops_engine.mini.scenes import Question, Scene, generate, is_correct
from tops_engine.report import ScoredAnswer
from tops_engine.settings import Generation, Pruning

# Test scenes start here; the training script's own evaluations use other seeds.
FIRST_SEED = 10_000_000
GENERATION = Generation(max_tokens=64)
UNPRUNED = Pruning(method="none", keep=1.0)
RANDOM_CONTROL = Pruning(method="random", keep=0.056)


class ObjectPatches(Method):
    """Keeps exactly the given tokens of each picture of one batch. Scenes know where their objects are: the oracle."""

    patches: tuple[tuple[int, ...], ...]

    def model_post_init(self, _context: object) -> None:
        # The engine plans and selects picture by picture, in the order of the batch.
        self._planned, self._selected = iter(self.patches), iter(self.patches)

    def plan(self, num_visual_tokens: int, num_layers: int, keep: Keep) -> tuple[Stage, ...]:
        return (Stage(0, len(next(self._planned))),)

    def select_visual(self, images: Sequence[VisualTokens], counts: Sequence[int]) -> list[Selection]:
        return [Selection(torch.tensor(next(self._selected), device=image.features.device)) for image in images]


class OraclePruning(Pruning):
    """Pruning of one batch to the patches of its scenes' objects, in order."""

    patches: tuple[tuple[int, ...], ...]

    @property
    def build(self) -> Method:
        return self._method

    def model_post_init(self, _context: object) -> None:
        self._method = ObjectPatches(patches=self.patches)


class BenchRow(BaseModel):
    """One method at one budget.

    Attributes
    ----------
    layer_average : visual tokens a layer saw, mean over questions.
    accuracy : share of right answers, by kind of question and in all (``all``).
    relative : ``accuracy["all"]`` over the unpruned model's.
    loss_increase : nats a token more than unpruned on the unpruned model's own answers, mean over questions.
    selection_ms, first_token_ms : a question's share of its batch, median over batches.
    """

    method: str
    keep: float | int | None
    layer_average: float
    accuracy: dict[str, float]
    relative: float
    loss_increase: float
    selection_ms: float
    first_token_ms: float


class BenchResult(BaseModel):
    """The figures of a run; the first row is the unpruned model, the second the oracle."""

    model: str
    device: str
    num_scenes: int
    num_questions: dict[str, int]
    batch_size: int
    rows: list[BenchRow]

    def validity(self) -> str:
        """Whether the instrument measures anything: the oracle must lose nothing, random choice at 5.6 % a lot."""
        unpruned, oracle = self.rows[:2]
        control = next(row for row in self.rows if (row.method, row.keep) == ("random", RANDOM_CONTROL.keep))
        difference = 100 * (oracle.accuracy["all"] - unpruned.accuracy["all"])
        lost = 100 * (1 - control.relative)
        return (
            f"Unpruned {100 * unpruned.accuracy['all']:.1f} %; only the objects' patches {difference:+.1f} points; "
            f"random 5.6 % loses {lost:.0f} % of it."
        )

    def table(self) -> Table:
        kinds = list(self.num_questions)
        table = Table(
            title=f"{self.model} on {self.num_scenes} unseen scenes, accuracy in % ({self.device})",
            caption=self.validity(),
            title_justify="left",
            caption_justify="left",
        )
        table.add_column("method", no_wrap=True)
        for heading in ("keep", "tokens", *kinds, "all", "relative", "loss +", "select ms", "first ms"):
            table.add_column(heading, justify="right", no_wrap=True)
        for row in self.rows:
            table.add_row(
                row.method,
                "" if row.keep is None else str(row.keep),
                f"{row.layer_average:.1f}",
                *(f"{100 * row.accuracy[kind]:.1f}" for kind in [*kinds, "all"]),
                f"{100 * row.relative:.1f}",
                f"{row.loss_increase:.3f}",
                f"{row.selection_ms:.2f}",
                f"{row.first_token_ms:.2f}",
            )
        return table

    def plot(self, path: Path) -> None:
        """Accuracy and loss increase against the budget, a line a method."""
        try:
            from matplotlib import pyplot
        except ImportError as error:
            raise MissingDependency("--plot needs matplotlib: pip install 'tops-engine[bench]'.") from error
        figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
        pruned = [row for row in self.rows if row.keep is not None and row.method != "none"]
        for method, group in groupby(sorted(pruned, key=lambda row: row.method), key=lambda row: row.method):
            rows = sorted(group, key=lambda row: row.layer_average)
            tokens = [row.layer_average for row in rows]
            left.plot(tokens, [100 * row.accuracy["all"] for row in rows], marker="o", label=method)
            right.plot(tokens, [row.loss_increase for row in rows], marker="o", label=method)
        unpruned, oracle = self.rows[:2]
        left.axhline(100 * unpruned.accuracy["all"], color="grey", linestyle="--", label="unpruned")
        left.plot(oracle.layer_average, 100 * oracle.accuracy["all"], "k*", label="objects' patches only")
        right.plot(oracle.layer_average, oracle.loss_increase, "k*", label="objects' patches only")
        left.set(xscale="log", xlabel="visual tokens (layer-average)", ylabel="right answers, %")
        right.set(xscale="log", xlabel="visual tokens (layer-average)", ylabel="loss increase, nats a token")
        left.legend()
        figure.suptitle(f"{self.model}, {self.num_scenes} unseen scenes")
        figure.savefig(path, dpi=150)
        pyplot.close(figure)


class _Tally:
    """What was measured of one pruning so far."""

    def __init__(self) -> None:
        self.right: dict[str, list[bool]] = defaultdict(list)
        self.tokens: list[float] = []
        self.losses: list[float] = []
        self.selection: list[float] = []
        self.first_token: list[float] = []

    def add(self, questions: Sequence[Question], scored: Sequence[ScoredAnswer]) -> None:
        answers = [score.answer for score in scored]
        for question, answer in zip(questions, answers, strict=True):
            right = is_correct(question, answer.text)
            self.right[question.kind].append(right)
            self.right["all"].append(right)
            self.tokens.append(answer.usage.layer_average)
        self.losses += [score.loss for score in scored]
        timings = answers[0].timings
        self.selection.append(1e3 * timings.selection / len(answers))
        self.first_token.append(1e3 * (timings.first_token - timings.prepare) / len(answers))

    def row(self, method: str, keep: Keep | None, unpruned: "_Tally") -> BenchRow:
        accuracy = {kind: statistics.fmean(right) for kind, right in sorted(self.right.items())}
        return BenchRow(
            method=method,
            keep=keep,
            layer_average=statistics.fmean(self.tokens),
            accuracy=accuracy,
            relative=accuracy["all"] / max(statistics.fmean(unpruned.right["all"]), 1e-9),
            loss_increase=statistics.fmean(self.losses) - statistics.fmean(unpruned.losses),
            selection_ms=statistics.median(self.selection),
            first_token_ms=statistics.median(self.first_token),
        )


def run_bench(
    engine: Engine,
    prunings: Sequence[Pruning],
    num_scenes: int = 1000,
    batch_size: int = 64,
    console: Console | None = None,
) -> BenchResult:
    """Ask every question of unseen scenes with every pruning, batch by batch in turn.

    The unpruned model, the oracle and random choice at 5.6 % are always measured too: without them a table does not
    say whether it measures anything.

    Parameters
    ----------
    engine : usually the embedded model's.
    prunings : what to measure.
    num_scenes, batch_size : scenes, and how many of them are asked about together, a kind of question at a time.
    console : shows the progress, if given.

    Raises
    ------
    MissingDependency
        If the pictures behind the scenes are not installed (``tops-engine[bench]``).
    """
    asked = [pruning for pruning in prunings if pruning.keep != 1.0 and pruning.method != "none"]
    if RANDOM_CONTROL not in asked:
        asked.append(RANDOM_CONTROL)
    unpruned, oracle, tallies = _Tally(), _Tally(), [_Tally() for _ in asked]
    columns = (TextColumn("scenes"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=console is None) as progress:
        task = progress.add_task("", total=num_scenes)
        for number, (pairs, worth) in enumerate(_batches(num_scenes, batch_size)):
            questions = [question for _, question in pairs]
            messages = [[user_message(question.text, scene.image)] for scene, question in pairs]
            scored = engine.scored_batch(messages, UNPRUNED, GENERATION)
            tokens = [score.answer.token_ids for score in scored]
            unpruned.add(questions, scored)
            for pruning, tally in zip(asked, tallies, strict=True):
                seeded = _reseeded(pruning, number)
                tally.add(questions, engine.scored_batch(messages, seeded, GENERATION, tokens))
            objects = _objects_only(engine, pairs)
            oracle.add(questions, engine.scored_batch(messages, objects, GENERATION, tokens))
            progress.advance(task, worth)
    rows = [unpruned.row("none", 1.0, unpruned), oracle.row("oracle", None, unpruned)]
    rows += [tally.row(pruning.label, pruning.keep, unpruned) for pruning, tally in zip(asked, tallies, strict=True)]
    return BenchResult(
        model=engine.spec.model,
        device=str(engine.device),
        num_scenes=num_scenes,
        num_questions={kind: len(right) for kind, right in sorted(unpruned.right.items()) if kind != "all"},
        batch_size=batch_size,
        rows=rows,
    )


def _reseeded(pruning: Pruning, number: int) -> Pruning:
    """Another seed for each batch: a method that draws must not be judged by one draw."""
    if "selection_seed" not in METHODS[pruning.method].model_fields or "selection_seed" in (pruning.model_extra or {}):
        return pruning
    return Pruning(method=pruning.method, keep=pruning.keep, selection_seed=number)


def _batches(num_scenes: int, batch_size: int) -> Iterator[tuple[list[tuple[Scene, Question]], float]]:
    """The questions of ``batch_size`` unseen scenes at a time, one kind after the other: their answers end together.

    With each batch comes how many scenes it is worth, by its share of their questions.
    """
    for begin in range(0, num_scenes, batch_size):
        seeds = range(FIRST_SEED + begin, FIRST_SEED + min(begin + batch_size, num_scenes))
        pairs = [
            (scene, question) for scene in (generate(seed, "test") for seed in seeds) for question in scene.questions
        ]
        for kind in sorted({question.kind for _, question in pairs}):
            of_kind = [pair for pair in pairs if pair[1].kind == kind]
            yield of_kind, len(seeds) * len(of_kind) / len(pairs)


def _objects_only(engine: Engine, pairs: Sequence[tuple[Scene, Question]]) -> OraclePruning:
    vision = engine.family.model.config.vision_config
    grid = vision.image_size // vision.patch_size
    patches = tuple(tuple(scene.object_patches(grid)) for scene, _ in pairs)
    return OraclePruning(method="none", keep=1.0, patches=patches)
