"""Measure what pruning costs in accuracy, on the embedded model and scenes it has never seen."""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from tops_engine.bench.report import BenchResult
from tops_engine.bench.splits import FIRST_SEEDS, Split
from tops_engine.bench.summary import Measured, Measurements
from tops_engine.budget import Keep, Stage
from tops_engine.conversation.messages import Message, user_message
from tops_engine.engine import Engine
from tops_engine.errors import InvalidInput, TopsError, listed
from tops_engine.evaluation.prunings import (
    UNPRUNED,
    check_measured,
    is_compared,
    pruning_name,
    reseeded,
    settings_key,
    without_unpruned,
)
from tops_engine.journal import Journal
from tops_engine.methods import Method, Positions, Selection, VisualTokens
from tops_engine.mini.questions import KINDS
from tops_engine.mini.scenes import Question, Scene, generate, is_correct
from tops_engine.progress import Progress, no_progress
from tops_engine.settings import Generation, Pruning
from tops_engine.version import __version__

GENERATION = Generation(max_tokens=64)
FIRST_TOKEN = Generation(max_tokens=1)
TIMED_QUESTIONS = 16
RANDOM_CONTROL = Pruning(method="random", keep=0.056)


class ObjectPatches(Method, register=False):
    """Keep exactly the given tokens of each picture of one batch.

    With the patches that hold a scene's objects this is the oracle: no method can choose better.
    """

    patches: tuple[tuple[int, ...], ...]

    def model_post_init(self, _context: object) -> None:
        # The engine plans and selects picture by picture, in the order of the batch.
        self._planned, self._selected = iter(self.patches), iter(self.patches)

    def plan(self, num_visual_tokens: int, num_layers: int, keep: Keep) -> tuple[Stage, ...]:
        return (Stage(0, len(next(self._planned))),)

    def select_visual(self, images: Sequence[VisualTokens], counts: Sequence[int]) -> list[Selection]:
        return [Selection(torch.tensor(next(self._selected), device=image.features.device)) for image in images]


class OraclePruning(Pruning):
    """Prune each picture of a batch, in order, to the patches of its scene's objects."""

    patches: tuple[tuple[int, ...], ...]

    @property
    def method_instance(self) -> Method:
        return self._method

    def model_post_init(self, _context: object) -> None:
        self._method = ObjectPatches(patches=self.patches)


#: Stands for the patches of the objects in the scenes that are asked about.
ORACLE = OraclePruning(method="none", keep=1.0, patches=())


def is_oracle(pruning: Pruning) -> bool:
    """Return whether a pruning keeps what only the truth can tell, so that it is compared with no other."""
    return isinstance(pruning, OraclePruning)


class Batch:
    """Questions of one kind that are asked together. Their pictures are encoded once for all prunings."""

    def __init__(self, engine: Engine, number: int, pairs: Sequence[tuple[Scene, Question]], timed: bool) -> None:
        self.engine = engine
        self.number = number
        self.pairs = pairs
        self.timed = timed
        self.messages: list[list[Message]] = [[user_message(question.text, scene.image)] for scene, question in pairs]
        self.prepared = engine.prepare(self.messages)
        scored = engine.scored_batch(self.prepared, UNPRUNED, GENERATION)
        self.references = [score.answer.token_ids for score in scored]

    def measure(self, pruning: Pruning) -> Measured:
        """Ask all questions with a pruning; if it cannot run, the result holds the error."""
        about: dict[str, Any] = {"batch": self.number, "pruning": pruning.resolved()}
        about["name"] = "oracle" if is_oracle(pruning) else pruning_name(pruning)
        about |= {"kind": self.pairs[0][1].kind}
        try:
            scored = self.engine.scored_batch(self.prepared, self._concrete(pruning), GENERATION, self.references)
            times = self._times(pruning) if self.timed else {}
        except TopsError as error:
            return Measured(**about, error=str(error))
        texts = [score.answer.text for score in scored]
        return Measured(
            **about,
            right=[is_correct(question, text) for (_, question), text in zip(self.pairs, texts, strict=True)],
            tokens=[score.answer.usage.layer_average for score in scored],
            losses=[score.loss for score in scored],
            **times,
        )

    def _times(self, pruning: Pruning) -> dict[str, float]:
        """Measure the milliseconds a question takes up to the first token, with vision."""
        messages = self.messages[:TIMED_QUESTIONS]
        timings = self.engine.scored_batch(messages, self._concrete(pruning), FIRST_TOKEN)[0].answer.timings
        return {
            "selection_ms": 1e3 * timings.selection / len(messages),
            "first_token_ms": 1e3 * (timings.first_token - timings.prepare) / len(messages),
        }

    def _concrete(self, pruning: Pruning) -> Pruning:
        """Return the pruning to run: the oracle with the patches of these scenes, a random method with a seed."""
        if is_oracle(pruning):
            return _objects_only(self.engine, self.pairs, pruning.positions)
        return reseeded(pruning, self.number)


def run_bench(
    engine: Engine,
    prunings: Sequence[Pruning],
    num_scenes: int = 1000,
    batch_size: int = 64,
    progress: Progress = no_progress,
    kinds: Collection[str] = KINDS,
    path: Path | None = None,
    against: Sequence[str] = (),
    split: Split = "test",
    positions: Positions | None = None,
) -> BenchResult:
    """Ask questions about unseen scenes with every pruning, batch by batch, with another pruning first each time.

    If ``resize`` is among them, the result also has all of them on the questions that it answers at the same budget,
    and on the others.

    The unpruned model, the oracle and random choice at 5.6 % are always measured too: they show whether the benchmark
    is valid. Times are taken on the first batch of each kind.

    Parameters
    ----------
    engine : usually the embedded model's.
    prunings : the prunings to measure; one that cannot run leaves an empty row with the error.
    num_scenes : how many scenes to ask about.
    batch_size : scenes that are asked about together, one kind of question at a time.
    progress : receives the number of scenes.
    kinds : the kinds of questions to ask.
    path : JSONL file that the measurements are added to; a stopped run continues it.
    against : labels of measured methods (``scope``, ``tops:stages=first``); every row at the same budget gets its
        difference from each of them, with a paired 95 % interval.
    split : ``test``, or ``confirm`` for scenes that nothing was ever tuned on.
    positions : how kept tokens are numbered, of all that is measured; None numbers them as each pruning says. A model
        that never met dropped tokens in training may need ``original``.

    Raises
    ------
    MissingDependency
        If the pictures behind the scenes are not installed (``tops-engine[bench]``).
    InvalidInput
        If none of the prunings can run, a kind is unknown, ``against`` names a method that is not measured, or ``path``
        belongs to another run.
    """
    if not kinds or set(kinds) - set(KINDS):
        raise InvalidInput(f"Kinds of questions are {', '.join(KINDS)}; not {listed(sorted(set(kinds) - set(KINDS)))}.")
    wanted = [pruning for pruning in without_unpruned(prunings) if pruning.schedule or pruning.keep != 1.0]
    measured = [ORACLE, *wanted, RANDOM_CONTROL]
    if positions is not None:
        measured = [pruning.model_copy(update={"positions": positions}) for pruning in measured]
    asked = list(dict.fromkeys([UNPRUNED, *measured]))
    others = [pruning for pruning in asked if not is_oracle(pruning)]
    check_measured(against, others)
    journal = Journal(path, _header(engine, num_scenes, batch_size, kinds, split))
    batches = question_batches(FIRST_SEEDS[split], num_scenes, batch_size, kinds)
    lines, seeds = _measure(
        engine, asked, measured[1:-1], batches, journal, lambda done: progress(int(done), num_scenes)
    )
    progress(num_scenes, num_scenes)
    found = Measurements(lines, UNPRUNED, seeds)
    return BenchResult(
        model=engine.spec.model,
        device=str(engine.device),
        split=split,
        num_scenes=num_scenes,
        num_questions=found.num_questions(),
        batch_size=batch_size,
        rows=[
            found.row(
                pruning,
                "oracle" if is_oracle(pruning) else pruning.label,
                [other for other in others if not is_oracle(pruning) and is_compared(pruning, other, against)],
            )
            for pruning in asked
        ],
        halves=found.halves(others),
    )


def _measure(
    engine: Engine,
    asked: Sequence[Pruning],
    wanted: Sequence[Pruning],
    batches: Iterable[tuple[list[int], list[tuple[Scene, Question]], float]],
    journal: Journal,
    report: Callable[[float], None],
) -> tuple[dict[Pruning, list[Measured]], list[int]]:
    """Return what each pruning answered batch by batch, from the journal where it holds that, and the scenes."""
    measured = {
        (line.batch, settings_key(line.pruning)): line for line in map(Measured.model_validate, journal.records())
    }
    lines: dict[Pruning, list[Measured]] = defaultdict(list)
    seeds: list[int] = []
    timed: set[str] = set()
    done = 0.0
    report(done)
    for number, (asked_seeds, pairs, worth) in enumerate(batches):
        kind = pairs[0][1].kind
        seeds += asked_seeds
        missing = [pruning for pruning in asked if (number, settings_key(pruning.resolved())) not in measured]
        if missing:
            batch = Batch(engine, number, pairs, timed=kind not in timed)
            turn = number % len(missing)
            for step, pruning in enumerate(missing[turn:] + missing[:turn], start=1):
                line = batch.measure(pruning)
                journal.append([line.model_dump(mode="json")])
                measured[number, settings_key(pruning.resolved())] = line
                report(done + worth * step / len(missing))
        done += worth
        report(done)
        timed.add(kind)
        for pruning in asked:
            lines[pruning].append(measured[number, settings_key(pruning.resolved())])
        if wanted and all(lines[pruning][0].error for pruning in wanted):
            raise InvalidInput(str(lines[wanted[0]][0].error))
    return lines, seeds


def _header(engine: Engine, num_scenes: int, batch_size: int, kinds: Collection[str], split: Split) -> dict[str, Any]:
    # Files of version 0.1 do not name the split.
    return ({} if split == "test" else {"split": split}) | {
        "format": "tops bench 1",
        "version": __version__,
        "model": engine.spec.model_dump(mode="json"),
        "device": str(engine.device),
        "scenes": num_scenes,
        "batch_size": batch_size,
        "kinds": sorted(kinds),
    }


def question_batches(
    first_seed: int, num_scenes: int, batch_size: int, kinds: Collection[str]
) -> Iterator[tuple[list[int], list[tuple[Scene, Question]], float]]:
    """Yield the questions about ``batch_size`` unseen scenes at a time, one kind after the other.

    Answers to questions of one kind end at about the same time. A batch comes with the seed of each question's scene,
    and with the number of scenes that it stands for, by its share of their questions.
    """
    for begin in range(0, num_scenes, batch_size):
        seeds = range(first_seed + begin, first_seed + min(begin + batch_size, num_scenes))
        found = [
            (seed, (scene, question))
            for seed, scene in ((seed, generate(seed, "test")) for seed in seeds)
            for question in scene.questions
            if question.kind in kinds
        ]
        for kind in sorted({question.kind for _, (_, question) in found}):
            of_kind = [(seed, pair) for seed, pair in found if pair[1].kind == kind]
            share = len(of_kind) / len(found)
            yield [seed for seed, _ in of_kind], [pair for _, pair in of_kind], len(seeds) * share


def _objects_only(
    engine: Engine, pairs: Sequence[tuple[Scene, Question]], positions: Positions | None
) -> OraclePruning:
    vision = engine.family.model.config.vision_config
    grid = vision.image_size // vision.patch_size
    patches = tuple(tuple(scene.object_patches(grid)) for scene, _ in pairs)
    return OraclePruning(method="none", keep=1.0, patches=patches, positions=positions)
