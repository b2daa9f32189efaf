"""Run one call of the GPU benchmark: run parts until the time is used up, and write the results after each part."""

import gc
import json
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import machine
from benchmarks.published_sizes import SIZES
from benchmarks.shapes import build
from tops_engine.families import Family


@dataclass
class Bench:
    """The settings and models that the parts of one call share.

    Attributes
    ----------
    device, dtype : where and in which precision the models run.
    rehearsal : whether this is a dry run with tiny shapes on the CPU: fewer rounds, no assertion about speed.
    deadline : ``time.perf_counter()`` at which the call has to end.
    """

    device: str
    dtype: torch.dtype
    rehearsal: bool
    deadline: float
    _models: dict[str, Family] = field(default_factory=dict)

    @property
    def seconds_left(self) -> float:
        return self.deadline - time.perf_counter()

    def model(self, shape: str) -> Family:
        """Return the model of a published shape with random weights; build it once a call, on the device."""
        if shape not in self._models:
            begun = time.perf_counter()
            self._models[shape] = build(SIZES[shape], self.device, self.dtype)
            print(f"== built {shape} in {time.perf_counter() - begun:.1f} s", flush=True)
        return self._models[shape]

    def drop_models(self) -> None:
        """Free the memory of all models built so far."""
        self._models.clear()
        gc.collect()
        if self.device == "cuda":
            torch.cuda.empty_cache()


@dataclass(frozen=True)
class Part:
    """One measurement.

    Attributes
    ----------
    name : key in the results file.
    seconds : time that the part is expected to need on an H100; it does not start when less is left.
    run : returns JSON-ready results; their ``summary`` is a list of lines to print.
    """

    name: str
    seconds: float
    run: Callable[[Bench], dict[str, Any]]


def run_call(name: str, parts: list[Part], bench: Bench, path: Path) -> bool:
    """Run the parts of a call in order and return whether all of them are done.

    ``path`` holds the results of all calls as JSON, by call and part. It is written after every part, so that a call
    that is cut short loses nothing. A part that succeeded in an earlier run is not repeated.
    """
    results = json.loads(path.read_text()) if path.exists() else {}
    results.setdefault("machine", {}).update(machine(bench.device))
    done: dict[str, Any] = results.setdefault(name, {})
    for part in parts:
        if "error" in done.get(part.name, {"error": None}):
            done[part.name] = _run_part(part, bench)
            path.write_text(json.dumps(results, indent=2) + "\n")
    print(summary(name, results), flush=True)
    return all("error" not in done[part.name] for part in parts)


def _run_part(part: Part, bench: Bench) -> dict[str, Any]:
    if bench.seconds_left < part.seconds and not bench.rehearsal:
        return {"error": f"not started: it needs {part.seconds:.0f} s and {max(bench.seconds_left, 0):.0f} s were left"}
    print(f"== {part.name}", flush=True)
    begun = time.perf_counter()
    try:
        result = part.run(bench)
    except Exception as error:  # the other parts still run
        traceback.print_exc()
        result = {"error": f"{type(error).__name__}: {error}"}
    result["wall_s"] = time.perf_counter() - begun
    print(f"== {part.name}: {result.get('error', 'done')}, {result['wall_s']:.1f} s", flush=True)
    return result


def summary(name: str, results: dict[str, Any]) -> str:
    """Return a summary of a call for one screen: the machine, then the lines of each part or the reason for none."""
    about = results["machine"]
    lines = [f"{name} on {about.get('gpu', about['cpu'])}, torch {about['torch']}"]
    for part, result in results[name].items():
        lines.append(f"{part} ({result.get('wall_s', 0):.1f} s): {result.get('error', '')}".rstrip(": "))
        lines += [f"    {line}" for line in result.get("summary", [])]
    return "\n".join(lines)
