"""Train the projector and the language model of one shape; the vision tower is frozen and its features are read.

The recipe is mini's (`benchmarks/mini/language.py`) with three changes: steps are half as large, so that there are
twice as many for the same time; every row asks for a list of all objects if it fits; the training ends after a number
of steps.
"""

import itertools
import json
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers import LlavaForConditionalGeneration
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from benchmarks.depth.early import EarlyReader
from benchmarks.depth.features import FIRST_SEED, GRID, computed, open_features
from benchmarks.depth.models import Shape, build, processor
from benchmarks.mini.data import objects_of
from benchmarks.mini.language import Check, Reader, rms_norm
from benchmarks.mini.packing import IGNORED, POLICIES, SHARES, Packer, Row, Speller
from benchmarks.mini.tower import advance, make_optimisers, rate, save

# Tokens per row and rows per step, of steps with all and with few visual tokens: 150 and 110 questions about a step's
# scenes cost about the same.
WHOLE, PRUNED = (400, 7), (232, 12)
WHOLE_SHARE = 0.4  # of the steps, where visual tokens are dropped in the others
EASY_SHARE, EASY_OBJECTS = 0.08, 6  # the first steps see scenes of few objects only
LOG_EVERY = 25  # steps between two lines of the log, each with a checkpoint; this is what a kill can lose


class Plan(NamedTuple):
    """How a model is trained.

    Attributes
    ----------
    scenes : training scenes whose features are on disk.
    steps : of all runs.
    peak_rate : peak learning rate.
    check_every : steps between two checks on unseen scenes.
    check_scenes : unseen scenes of a check.
    compiled : whether the layers are compiled, which needs a C++ compiler and takes a fifth less time.
    """

    scenes: int = 12_000
    steps: int = 4000
    peak_rate: float = 2.4e-3
    check_every: int = 200
    check_scenes: int = 40
    compiled: bool = False


def print_entry(entry: dict[str, Any]) -> None:
    """Print a line of the log."""
    print(json.dumps(entry), flush=True)


@contextmanager
def fast_norm() -> Iterator[None]:
    """Use torch's own RMS norm in the language model, which is faster in training."""
    before = LlamaRMSNorm.forward
    LlamaRMSNorm.forward = rms_norm
    try:
        yield
    finally:
        LlamaRMSNorm.forward = before


class StopAtTermination:
    """Notice SIGTERM and SIGINT while a block runs, so that a run ends with a checkpoint."""

    def __enter__(self) -> "StopAtTermination":
        self.asked = False
        self._before = {number: signal.signal(number, self._ask) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, _number: int, _frame: FrameType | None) -> None:
        self.asked = True


def draw(shape: Shape, step: int, plan: Plan, packer: Packer) -> tuple[list[int], list[Row]]:
    """Return the scenes of a step, as places in the file of features, and its rows; the last row has no picture."""
    rng = random.Random(f"depth {shape.seed} {step}")
    whole = not shape.drops_tokens or rng.random() < WHOLE_SHARE
    length, size = WHOLE if whole else PRUNED
    places: list[int] = []
    while len(places) < size + 1:
        place = rng.randrange(plan.scenes)
        if step > EASY_SHARE * plan.steps or len(objects_of(FIRST_SEED + place, "train")) <= EASY_OBJECTS:
            places.append(place)
    rows = []
    for place, other in itertools.pairwise(places):
        policy = "all" if whole else rng.choices(POLICIES, SHARES)[0]
        rows.append(packer.row(FIRST_SEED + place, FIRST_SEED + other, policy, length, rng))
    return places, [*rows, packer.blind_row(length, rng)]


def loss_of(reader: Reader, rows: list[Row], features: Tensor) -> Tensor:
    """Return the mean weighted loss of the answers' tokens, nats."""
    logits, batch = reader.logits(rows, features, [*range(len(rows) - 1), 0])
    chosen = batch["labels"][:, 1:] != IGNORED
    weights = batch["weights"][:, 1:][chosen]
    losses = functional.cross_entropy(logits, batch["labels"][:, 1:][chosen], reduction="none")
    return (losses * weights).sum() / weights.sum()


def train(work: Path, shape: Shape, plan: Plan, report: Callable[[dict[str, Any]], None] = print_entry) -> bool:
    """Train until all steps are done, and export the model to ``work / shape.name / "model"``.

    A run that was stopped is continued with the same steps that it would have taken. SIGTERM and SIGINT end a run with
    a checkpoint.

    Returns
    -------
    bool
        Whether all steps are done.
    """
    folder = work / shape.name
    if (folder / "model" / "config.json").exists():
        return True
    if computed(work) < plan.scenes:
        raise SystemExit(
            f"The features of {computed(work)} scenes are ready, {plan.scenes} are needed; run the stage `features`."
        )
    folder.mkdir(parents=True, exist_ok=True)
    with fast_norm():
        model = _train(work, folder, shape, plan, report)
    if model is None:
        return False
    part = folder / "model.part"  # "model" is whole whenever it is there
    model.half().save_pretrained(part)
    processor().save_pretrained(part)
    part.rename(folder / "model")
    return True


def _train(
    work: Path, folder: Path, shape: Shape, plan: Plan, report: Callable[[dict[str, Any]], None]
) -> LlavaForConditionalGeneration | None:
    """Return the trained model, or None if the run was stopped."""
    model = build(shape)
    if plan.compiled:
        for layer in model.model.language_model.layers:
            layer.compile(dynamic=False)
    optimisers = make_optimisers(model)
    reader, speller = EarlyReader(model, torch.device("cpu")), Speller(processor().tokenizer)
    packer = Packer(speller, GRID, "train", list_share=1.0)
    check = Check(reader, Packer(speller, GRID, "test"), GRID, plan.check_scenes)
    features = open_features(work, plan.scenes)
    checkpoint, step, spent, running = folder / "language.pt", 0, 0.0, None
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location="cpu")
        model.load_state_dict(state["model"])
        for optimiser, values in zip(optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(values)
        step, spent = state["step"], state["spent"]
    started = time.process_time() - spent
    with StopAtTermination() as stop:
        while step < plan.steps and not stop.asked:
            places, rows = draw(shape, step, plan, packer)
            pictures = torch.from_numpy(np.asarray(features[places])).to(torch.bfloat16)
            if shape.reads_early:
                reader.draw(random.Random(f"early {shape.seed} {step}"))
            loss = loss_of(reader, rows, pictures)
            torch.autograd.backward(loss)
            reader.gone_from = None
            advance(optimisers, rate(step / plan.steps, plan.peak_rate))
            step += 1
            running = loss.item() if running is None else 0.95 * running + 0.05 * loss.item()
            checked = step % plan.check_every == 0 or step == plan.steps
            if step % LOG_EVERY == 0 or checked:
                spent = time.process_time() - started
                entry = {"model": shape.name, "step": step, "cpu_minutes": round(spent / 60, 2)}
                report(entry | {"loss": round(running, 4)} | (check.run() if checked else {}))
                save(checkpoint, model, optimisers, step, time.process_time() - started)
        save(checkpoint, model, optimisers, step, time.process_time() - started)
    return model if step == plan.steps else None
