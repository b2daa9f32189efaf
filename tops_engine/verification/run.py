"""Run all checks and measurements of `tops verify`."""

import importlib.metadata
import platform
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from tops_engine.conversation.messages import user_message
from tops_engine.device.machine import machine
from tops_engine.engine import Engine
from tops_engine.errors import InvalidInput, TopsError
from tops_engine.evaluation.prunings import resize_label
from tops_engine.families import Family
from tops_engine.methods import Positions
from tops_engine.progress import Progress, no_progress
from tops_engine.settings import Pruning
from tops_engine.settings.labels import read_prunings
from tops_engine.verification.budgets import check_budget, check_masked
from tops_engine.verification.fidelity import measure_fidelity
from tops_engine.verification.parity import check_parity
from tops_engine.verification.pictures import conversations, fidelity_conversations, picture
from tops_engine.verification.problems import problems_of
from tops_engine.verification.result import Verification
from tops_engine.verification.speed import measure_speed, num_steps
from tops_engine.version import __version__

KEEPS = (0.222, 0.111)
QUESTION = "Describe the picture."

#: What is compared: TOPS, its first stage alone and chance. A smaller picture comes in addition.
FIDELITY_METHODS = ("tops", "tops:stages=first", "random")

PACKAGES = ("torch", "transformers", "tokenizers", "accelerate")

Found = TypeVar("Found")


def verify(engine: Engine, command: str, progress: Progress = no_progress) -> Verification:
    """Check a model on this machine and measure what pruning does to it.

    Parameters
    ----------
    engine : with the model loaded.
    command : the command line, for the result.
    progress : receives the number of steps.

    Raises
    ------
    InvalidInput
        If the model is loaded in a way that transformers does not have.
    TopsError
        If the model cannot answer at all.
    """
    if not engine.spec.unpad:
        raise InvalidInput("transformers cuts off padding, so there is nothing to compare with; leave out --no-unpad.")
    run = _Run(engine, progress)
    begun = time.perf_counter()
    found: dict[str, Any] = {}
    found["parity"], notes = check_parity(engine, conversations(), run.step)
    run.notes += notes
    question = [user_message(QUESTION, picture("photo"))]
    budgets = [run.part(f"the budget {keep}", partial(check_budget, engine, question, keep)) for keep in KEEPS]
    masked = [
        run.part("the masked reference", partial(check_masked, engine, question, KEEPS[0], positions))
        for positions in numberings(engine.family)
    ]
    found["budgets"] = [check for check in budgets if check is not None]
    found["masked"] = [check for check in masked if check is not None]
    found["speed"] = run.part("speed", lambda: measure_speed(engine, (1.0, *KEEPS), run.step)) or []
    methods = [*FIDELITY_METHODS, resize_label(engine.family.one_size)]
    prunings = read_prunings(",".join(methods), ",".join(map(str, KEEPS)))
    found["fidelity"] = run.fidelity(prunings)
    run.done()
    found["seconds"] = time.perf_counter() - begun
    found["problems"] = problems_of(found["parity"], found["budgets"], found["masked"])
    return Verification(**_about(engine, command), **found, notes=run.notes)


def numberings(family: Family) -> tuple[Positions, ...]:
    """Return the ways to number kept tokens that a model has; 3-D positions are never renumbered."""
    return ("contiguous", "original") if family.position_axes == 1 else ("original",)


class _Run:
    """The steps of a run, and the notes on parts that could not run."""

    def __init__(self, engine: Engine, progress: Progress) -> None:
        self.notes: list[str] = []
        self._engine = engine
        self._progress = progress
        self._num_done = 0
        prunings = (len(FIDELITY_METHODS) + 1) * len(KEEPS)
        self._num_steps = len(conversations()) + 1 + len(KEEPS) + len(numberings(engine.family))
        self._num_steps += num_steps((1.0, *KEEPS)) + 1 + prunings + 1
        progress(0, self._num_steps)

    def step(self) -> None:
        """Report one more step."""
        self._num_done = min(self._num_done + 1, self._num_steps)
        self._progress(self._num_done, self._num_steps)

    def done(self) -> None:
        self._progress(self._num_steps, self._num_steps)

    def part(self, name: str, measure: Callable[[], Found]) -> Found | None:
        """Run a part; if it cannot run, note why and return None."""
        try:
            return measure()
        except TopsError as error:
            self.notes.append(f"Not measured: {name}. {error}")
            return None
        finally:
            self.step()

    def fidelity(self, prunings: list[Pruning]) -> list[Any]:
        asked = fidelity_conversations()
        return self.part("fidelity", lambda: measure_fidelity(self._engine, asked, prunings, self.step)) or []


def _about(engine: Engine, command: str) -> dict[str, Any]:
    """Return what was checked, where and with which versions; of a folder only its name."""
    spec, config = engine.spec, engine.family.model.config
    is_folder = Path(spec.model).is_dir()
    versions = {"tops-engine": __version__, "python": platform.python_version()}
    versions |= {package: importlib.metadata.version(package) for package in PACKAGES}
    return {
        "model": Path(spec.model).resolve().name if is_folder else spec.model,
        "commit": None if is_folder else getattr(config, "_commit_hash", None),
        "model_type": config.model_type,
        "settings": spec.model_dump(mode="json", exclude={"model"}),
        "dtype": str(engine.family.decoder.dtype).removeprefix("torch."),
        "device": str(engine.device),
        "machine": machine(str(engine.device)),
        "versions": versions,
        "command": command,
        "date": datetime.now(UTC).date().isoformat(),
    }
