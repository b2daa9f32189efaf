"""Measure captions a second: many pictures at several batch sizes, unpruned and pruned in turns.

    python -m benchmarks.throughput --json benchmarks/results/throughput.json
    python -m benchmarks.throughput --batches 32 --tower-keeps 1.0,0.5 --json tower-keep.json
    python -m benchmarks.throughput --shape llava-next-7b --device cuda --dtype bfloat16 --largest --keeps 1.0,0.111

Prompts are sorted by length before they are batched, so that little is padded. Figures are medians over the rounds.
``--largest`` finds for each budget the largest batch that fits into memory, and measures this size, half and a quarter
of it. Pruning saves memory, which allows larger batches; the best batch size of each side counts. Preparing (scaling
pictures, writing templates) runs on the CPU and is reported separately, because it can be done ahead. The parts of the
time are those of a picture: of a batch, divided by its size.
"""

import argparse
import json
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.latency import PARTS
from benchmarks.machine import machine
from benchmarks.published_sizes import SIZES
from benchmarks.shapes import build, question
from tops_engine.conversation.messages import Conversation, read_conversation, user_message
from tops_engine.families import Family
from tops_engine.generation.run import Run
from tops_engine.loading import load_family
from tops_engine.mini.scenes import generate
from tops_engine.settings import Generation, ModelSpec, Pruning

QUESTIONS = ("Describe the picture.", "How many objects are there?", "What digits are written in the picture?")


class Case(NamedTuple):
    """What is measured: the pictures of a batch, and what is kept of the visual tokens and inside the vision tower."""

    batch: int
    keep: float
    tower_keep: float = 1.0


class Seconds(NamedTuple):
    """The time of answering all pictures, and of each part of it."""

    total: float
    parts: dict[str, float]

    @property
    def prepare(self) -> float:
        return self.parts["prepare"]


def seconds_for(
    family: Family,
    conversations: list[Conversation],
    batch_size: int,
    keep: float,
    num_new: int,
    tower_keep: float = 1.0,
) -> Seconds:
    family.forget_pictures()
    parts = dict.fromkeys(PARTS, 0.0)
    begun = perf_counter()
    for start in range(0, len(conversations), batch_size):
        batch = conversations[start : start + batch_size]
        pruning = Pruning(keep=keep, tower_keep=tower_keep)
        run = Run(family, "benchmark", batch, pruning, Generation(max_tokens=num_new))
        run.start()
        while not run.done:
            run.step()
        timings = run.answers()[0].timings
        parts = {part: seconds + getattr(timings, part) for part, seconds in parts.items()}
    return Seconds(perf_counter() - begun, parts)


def largest_batch(family: Family, conversations: list[Conversation], keep: float, num_new: int) -> int:
    """Return how many of the longest conversations fit into the device's memory: all, half, a quarter and so on."""
    size = len(conversations)
    while size > 1:
        try:
            seconds_for(family, conversations[-size:], size, keep, num_new)
            break
        except torch.OutOfMemoryError:
            size //= 2
        if family.decoder.device.type == "cuda":
            torch.cuda.empty_cache()  # after the except clause, because its error holds references to the tensors
    return size


def pictures(shape: str | None, count: int) -> list[Conversation]:
    """Return questions of different lengths about different pictures, shortest first."""
    if shape is not None:
        conversations = [question(SIZES[shape], 20 + index % 41, index) for index in range(count)]
    else:
        scenes = [generate(seed, "test").image for seed in range(count)]
        messages = [user_message(QUESTIONS[index % 3], scene) for index, scene in enumerate(scenes)]
        conversations = [read_conversation([message]) for message in messages]
    return sorted(conversations, key=lambda conversation: len(conversation.question))


def best_of(rows: list[dict[str, Any]], keeps: list[float], speed: str) -> list[dict[str, Any]]:
    """Return the fastest row of each budget, and its speed-up over the fastest row of the first budget."""
    best = [max((row for row in rows if row["keep"] == keep), key=lambda row: row[speed]) for keep in keeps]
    return [row | {"times_the_first": row[speed] / best[0][speed]} for row in best]


def _rates(runs: list[Seconds], num_pictures: int) -> dict[str, Any]:
    """Return pictures a second, with and without preparing, and the seconds of each part for a picture."""
    return {
        "pictures_a_second": num_pictures / median(run.total for run in runs),
        "prepared_pictures_a_second": num_pictures / median(run.total - run.prepare for run in runs),
        "seconds": {part: median(run.parts[part] for run in runs) / num_pictures for part in PARTS},
    }


def _show(title: str, rows: list[dict[str, Any]]) -> None:
    table = Table(title=title)
    rates = ("pictures a second", "times the first row", "prepared before", "times the first row")
    for column in ("batch", "keep", "tower_keep", *(f"{part} ms" for part in PARTS), *rates):
        table.add_column(column, justify="right")
    for row in rows:
        speeds = [
            cell
            for speed in ("pictures_a_second", "prepared_pictures_a_second")
            for cell in (f"{row[speed]:.1f}", f"{row[speed] / rows[0][speed]:.2f}")
        ]
        parts = [f"{1e3 * row['seconds'][part]:.2f}" for part in PARTS]
        table.add_row(str(row["batch"]), str(row["keep"]), str(row["tower_keep"]), *parts, *speeds)
    Console(width=150).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SIZES, help="random weights of this published size; default: mini")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["bfloat16", "float16", "float32"])
    parser.add_argument("--pictures", type=int, default=64)
    parser.add_argument("--batches", default="1,8,32", help="batch sizes, separated by commas")
    parser.add_argument("--keeps", default="1.0,0.222,0.111", help="budgets, separated by commas")
    parser.add_argument("--tower-keeps", default="1.0", help="tower_keep of rows with a budget, separated by commas")
    parser.add_argument("--tokens", type=int, default=8, help="largest number of tokens of a caption")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--largest", action="store_true", help="find the batch sizes of each budget and ignore --batches"
    )
    parser.add_argument("--json", type=Path, help="write the results here")
    arguments = parser.parse_args()

    if arguments.shape:
        family = build(SIZES[arguments.shape], arguments.device, getattr(torch, arguments.dtype))
    else:
        family = load_family(ModelSpec(model="mini", device=arguments.device))
    conversations, num_new = pictures(arguments.shape, arguments.pictures), arguments.tokens
    keeps = [float(keep) for keep in arguments.keeps.split(",")]
    seconds_for(family, conversations[:2], 2, 0.5, 2)  # warms up
    if arguments.largest:
        largest = {keep: largest_batch(family, conversations, keep, num_new) for keep in keeps}
        cases = [Case(max(size >> halved, 1), keep) for keep, size in largest.items() for halved in range(3)]
        cases = list(dict.fromkeys(cases))
    else:
        tower_keeps = [float(keep) for keep in arguments.tower_keeps.split(",")]
        cases = [
            Case(int(batch), keep, tower_keep)
            for batch in arguments.batches.split(",")
            for keep in keeps
            for tower_keep in (tower_keeps if keep < 1 else [1.0])
        ]
    times: dict[Case, list[Seconds]] = {case: [] for case in cases}
    for _ in range(arguments.rounds):
        for case in cases:
            taken = seconds_for(family, conversations, case.batch, case.keep, num_new, case.tower_keep)
            times[case].append(taken)
    rows = [case._asdict() | _rates(times[case], len(conversations)) for case in cases]
    _show(f"{arguments.shape or 'mini'}: {len(conversations)} pictures", rows)
    best = best_of(rows, keeps, "prepared_pictures_a_second")
    for row in best:
        print(f"keep {row['keep']}: best with batches of {row['batch']}, {row['times_the_first']:.2f} times the first")
    if arguments.json:
        about = machine(arguments.device) | {"model": arguments.shape or "mini", "pictures": len(conversations)}
        results = {"rounds": arguments.rounds, "results": rows, "best": best}
        arguments.json.write_text(json.dumps(about | results, indent=2) + "\n")


if __name__ == "__main__":
    main()
