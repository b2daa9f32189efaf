"""Measure why a pruning method does well or badly on mini: which layers read the picture, what each TOPS stage keeps.

The patches that show the subject of a question are known for every scene, so each part can be measured by itself:

1. the layers at which mini still needs its visual tokens: all tokens up to a layer, one token from there on;
2. how well relevance finds the patches in question, at each layer and for each choice of text raters;
3. other shapes of the schedule at the same layer-average, where each stage selects as TOPS does or by the truth.

`python -m benchmarks.mini.stages --scenes 100 -o stages.json`
"""

import argparse
import json
import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from pydantic import Field, PrivateAttr
from torch import Tensor

from tops_engine import Engine, Generation, ModelSpec, Pruning, user_message
from tops_engine.bench.splits import FIRST_SEEDS
from tops_engine.budget import Keep, Stage
from tops_engine.generation.prompts import PreparedPrompts
from tops_engine.methods import LayerTokens, Method, Positions, Selection, VisualTokens
from tops_engine.methods.tops import TOPS, Raters, rater_relevance
from tops_engine.mini.scenes import Question, Scene, generate, is_correct

UNPRUNED = Pruning(method="none", keep=1.0)
GENERATION = Generation(max_tokens=64)
GRID, LAYERS = 12, 8
NUM_PATCHES = GRID * GRID
RATERS: tuple[Raters, ...] = ("dynamic", "last", "all")
Stages = Sequence[tuple[int, int]]
Row = dict[str, Any]
#: Budgets of 16, 32 and 8 tokens a layer, with the shape that TOPS has for 8 layers and with other shapes.
PUBLISHED_SHAPE: Sequence[Stages] = (((0, 32), (3, 8), (6, 4)), ((0, 64), (3, 16), (6, 8)), ((0, 16), (3, 4), (6, 2)))
OTHER_SHAPES: Sequence[Stages] = (
    ((0, 16),),
    ((0, 32),),
    ((0, 8),),
    ((0, 24), (4, 8)),
    ((0, 48), (4, 16)),
    ((0, 12), (4, 4)),
    ((0, 20), (6, 4)),
)
Chooser = Literal["tops", "truth", "other"]


class Probe(TOPS, register=False):
    """TOPS with given stages, each of which can select by another rule.

    ``truth`` selects the patches that the question is about, then other objects; ``other`` does the reverse. ``inside``
    are options of TOPS for the second stage alone.
    """

    at: tuple[Stage, ...]
    first: Chooser = "tops"
    second: Chooser = "tops"
    value: tuple[tuple[float, ...], ...]
    inside: dict[str, Any] = Field(default_factory=dict)

    def plan(self, num_visual_tokens: int, num_layers: int, keep: Keep) -> tuple[Stage, ...]:
        return self.at

    def select_visual(self, images: Sequence[VisualTokens], counts: Sequence[int]) -> list[Selection]:
        if self.first == "tops":
            return super().select_visual(images, counts)
        return self._known(self.first, [torch.arange(NUM_PATCHES)] * len(images), counts)

    def select_at_layer(self, images: Sequence[LayerTokens], counts: Sequence[int]) -> list[Selection]:
        if self.second == "tops":
            return TOPS(**self.inside).select_at_layer(images, counts)
        return self._known(self.second, [image.kept for image in images], counts)

    def _known(self, chooser: Chooser, kept: Sequence[Tensor], counts: Sequence[int]) -> list[Selection]:
        sign = 1 if chooser == "truth" else -1
        values = [sign * torch.tensor(value)[tokens] for value, tokens in zip(self.value, kept, strict=True)]
        return [Selection.highest(value, count) for value, count in zip(values, counts, strict=True)]


class Recorder(Method, register=False):
    """A method that drops nothing and records the relevance at every layer."""

    _seen: list[list[dict[Raters, Tensor]]] = PrivateAttr(default_factory=list)

    @property
    def adaptive(self) -> bool:
        return True

    def plan(self, num_visual_tokens: int, num_layers: int, keep: Keep) -> tuple[Stage, ...]:
        return tuple(Stage(layer, num_visual_tokens) for layer in range(1, num_layers))

    def select_at_layer(self, images: Sequence[LayerTokens], counts: Sequence[int]) -> list[Selection]:
        rows = [image.attention("text") for image in images]
        self._seen.append([{raters: rater_relevance(row, raters) for raters in RATERS} for row in rows])
        return [Selection(torch.arange(count)) for count in counts]


class Given(Pruning):
    """A pruning by a method that is not registered."""

    given: Any

    @property
    def method_instance(self) -> Method:
        return self.given


class Asked(NamedTuple):
    """One answer.

    It records whether the answer is correct, how much less likely the unpruned model's answer became (nats a token),
    the share of the patches in question that the last layers saw (None if the question is about none), and its text.
    """

    kind: str
    right: bool
    loss_increase: float
    kept: float | None
    text: str


class Batch:
    """Questions of one kind, and the patches that each is about."""

    def __init__(self, engine: Engine, pairs: Sequence[tuple[Scene, Question]]) -> None:
        self.engine, self.pairs, self.kind = engine, pairs, pairs[0][1].kind
        self.prepared: PreparedPrompts = engine.prepare(
            [[user_message(question.text, scene.image)] for scene, question in pairs]
        )
        self.subjects = [_subject(scene, question) for scene, question in pairs]
        scored = engine.scored_batch(self.prepared, UNPRUNED, GENERATION)
        self.references = [score.answer.token_ids for score in scored]
        self.losses = [score.loss for score in scored]
        noise = torch.Generator().manual_seed(0)
        self.value = []
        for (scene, _), subject in zip(pairs, self.subjects, strict=True):
            value = torch.rand(NUM_PATCHES, generator=noise)
            value[scene.object_patches(GRID)] += 1
            value[sorted(subject)] += 1
            self.value.append(tuple(value.tolist()))

    def ask(self, pruning: Pruning) -> list[Asked]:
        scored = self.engine.scored_batch(self.prepared, pruning, GENERATION, self.references)
        asked = []
        for (_, question), score, loss, subject in zip(self.pairs, scored, self.losses, self.subjects, strict=True):
            last = set(score.answer.token_map.stages[-1][1][0].tolist())
            kept = len(subject & last) / len(subject) if subject else None
            text = score.answer.text
            asked.append(Asked(self.kind, is_correct(question, text), score.loss - loss, kept, text))
        return asked

    def probe(self, at: Stages, positions: Positions | None = None, **options: Any) -> Pruning:
        probe = Probe(at=tuple(Stage(*stage) for stage in at), value=tuple(self.value), **options)
        return Given(method="none", keep=1.0, positions=positions, given=probe)

    def gone_from(self, layer: int, positions: Positions | None = None) -> Pruning:
        """Return the pruning that keeps all tokens up to a layer, and from there on one patch without an object."""
        return self.probe(((layer, 1),), positions, second="other")

    def relevance(self) -> dict[str, list[float]]:
        """Return for each layer and choice of raters the share of the n patches in question among the n most relevant.

        Questions about the whole picture ("describe") are left out.
        """
        recorder = Recorder()
        pruning = Given(method="none", keep=1.0, given=recorder)
        self.engine.scored_batch(self.prepared, pruning, Generation(max_tokens=1))
        found: dict[str, list[float]] = defaultdict(list)
        for layer, images in enumerate(recorder._seen, start=1):
            for subject, by_raters in zip(self.subjects, images, strict=True):
                if not subject or self.kind == "describe":
                    continue
                for raters, relevance in by_raters.items():
                    top = set(Selection.highest(relevance, len(subject)).indices.tolist())
                    found[f"layer {layer}, raters {raters}"].append(len(subject & top) / len(subject))
        return found


def _subject(scene: Scene, question: Question) -> set[int]:
    patches = scene.patches_of_objects(GRID)
    return set().union(*(patches[index] for index in question.subject))


def _batches(engine: Engine, num_scenes: int) -> list[Batch]:
    scenes = [generate(FIRST_SEEDS["test"] + number, "test") for number in range(num_scenes)]
    pairs = [(scene, question) for scene in scenes for question in scene.questions]
    kinds = sorted({question.kind for _, question in pairs})
    of_kind = [[pair for pair in pairs if pair[1].kind == kind] for kind in kinds]
    return [Batch(engine, pairs[start : start + 64]) for pairs in of_kind for start in range(0, len(pairs), 64)]


def measure(batches: Sequence[Batch], name: str, pruning: Callable[[Batch], Pruning]) -> Row:
    """Return a pruning's correct answers in percent, by kind and in total, and the means of the other figures."""
    asked = [answer for batch in batches for answer in batch.ask(pruning(batch))]
    row: Row = {"name": name}
    for kind in sorted({answer.kind for answer in asked}):
        row[kind] = 100 * statistics.fmean([answer.right for answer in asked if answer.kind == kind])
    row["all"] = 100 * statistics.fmean([answer.right for answer in asked])
    row["loss_increase"] = statistics.fmean([answer.loss_increase for answer in asked])
    row["subject_kept"] = 100 * statistics.fmean([answer.kept for answer in asked if answer.kept is not None])
    print("  ".join(f"{key} {value:.3g}" if isinstance(value, float) else value for key, value in row.items()))
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=100)
    parser.add_argument("-o", "--output", type=Path, default=Path("stages.json"))
    arguments = parser.parse_args()
    engine = Engine.load(ModelSpec(model="mini", device="cpu"))
    batches = _batches(engine, arguments.scenes)
    rows: list[Row] = []

    def add(name: str, pruning: Callable[[Batch], Pruning]) -> None:
        rows.append(measure(batches, name, pruning))

    def probe(name: str, at: Stages, **options: Any) -> None:
        counts = ", ".join(f"{count} from {layer}" for layer, count in at)
        add(f"{counts}: {name}", lambda batch: batch.probe(at, **options))

    add("unpruned", lambda _: UNPRUNED)
    for at in PUBLISHED_SHAPE:
        probe("tops", at)
        probe("raters last", at, inside={"raters": "last"})
        probe("the truth inside", at, second="truth")
    for at in OTHER_SHAPES:
        probe("tops", at)
    at = PUBLISHED_SHAPE[0]
    probe("raters all", at, inside={"raters": "all"})
    probe("relevance alone inside", at, inside={"criteria": "relevance"})
    probe("diversity and coverage inside", at, inside={"criteria": "coverage,diversity"})
    probe("original positions", at, positions="original")
    probe("the truth before the language model", at, first="truth")
    probe("the truth", at, first="truth", second="truth")
    probe("the truth", ((0, 16),), first="truth")
    for layer in range(1, LAYERS):
        add(f"1 from {layer}: no object", partial(Batch.gone_from, layer=layer))
    found: dict[str, list[float]] = defaultdict(list)
    for batch in batches:
        for key, shares in batch.relevance().items():
            found[key] += shares
    relevance = {key: 100 * statistics.fmean(shares) for key, shares in sorted(found.items())}
    print(json.dumps(relevance, indent=1))
    result = {"scenes": arguments.scenes, "rows": rows, "relevance": relevance}
    arguments.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
