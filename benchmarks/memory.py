"""Measure the memory of the process while an engine is asked about many different pictures.

    python -m benchmarks.memory --num-pictures 1500 --json benchmarks/results/memory.json

prints a table and writes the same as JSON: the resident memory after loading, on the way, after ``forget()`` and after
``unload()``, beside what the caches hold.
"""

import argparse
import gc
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.machine import machine
from tops_engine import Engine, Generation, ModelSpec, user_message

#: Pixels of each side of a picture.
SIDE = 336

#: Measurements on the way.
STEPS = 5


def measure(spec: ModelSpec, num_pictures: int, max_tokens: int) -> list[dict[str, Any]]:
    """Ask one question about each of many random pictures; return what was measured at each stage."""
    rows: list[dict[str, Any]] = []

    def note(stage: str, cache_bytes: int | None = None) -> None:
        gc.collect()
        rows.append({"stage": stage, "resident_bytes": psutil.Process().memory_info().rss, "cache_bytes": cache_bytes})

    note("imported")
    engine = Engine.load(spec)
    note("loaded")
    pixels = np.random.default_rng(0)
    for number in range(1, num_pictures + 1):
        picture = pixels.integers(0, 256, (SIDE, SIDE, 3), np.uint8)
        answer = engine.chat([user_message("What is shown?", picture)], generation=Generation(max_tokens=max_tokens))
        if number % (num_pictures // STEPS) == 0:
            note(f"{number} pictures", getattr(answer.usage, "cache_bytes", None))
    del answer
    engine.forget()
    note("after forget()", getattr(engine, "cache_bytes", None))
    engine.unload()
    note("after unload()", getattr(engine, "cache_bytes", None))
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--cache-mb", type=float, default=None, help="bound of the caches; the default of the engine")
    parser.add_argument("--num-pictures", type=int, default=1500)
    parser.add_argument("--max-tokens", type=int, default=4)
    parser.add_argument("--json", type=Path, default=None, help="write the measurements to this JSON file")
    given = parser.parse_args(arguments)
    options = {} if given.cache_mb is None else {"cache_mb": given.cache_mb}
    rows = measure(ModelSpec(model=given.model, device="cpu", **options), given.num_pictures, given.max_tokens)
    for row in rows:
        cache = "" if row["cache_bytes"] is None else f"caches {row['cache_bytes'] / 2**20:7.1f} MiB"
        print(f"{row['stage']:16} {row['resident_bytes'] / 2**20:8.1f} MiB  {cache}".rstrip())
    if given.json is not None:
        result = {"machine": machine(), "model": given.model, "side": SIDE, "options": options, "rows": rows}
        given.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
