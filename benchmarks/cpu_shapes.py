"""Measure published shapes on the CPU in bfloat16, with random weights: the engine, generate, and other methods' ways.

    python -m benchmarks.cpu_shapes smolvlm-256m qwen2.5-vl-3b llava-1.5-7b --json benchmarks/results/cpu-shapes.json
    python -m benchmarks.cpu_shapes small --tokens 4 --rounds 1

Everything answers the same question about the same picture in turns in one process, after one pruned answer that does
not count; times are medians over the rounds. With random weights other tokens are kept than with trained ones, in the
same time. `fastv` and `visionzip` are the engine's own implementations at the same budget. LLaVA-1.5-7B needs 14 GB of
memory. A method that cannot run on a shape leaves a row with the reason. The file is written after each round, with the
number of rounds of each row, so that a run that is cut short keeps what it measured.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console

from benchmarks.latency import Times, engine_times, transformers_times
from benchmarks.published_sizes import SIZES, Published, small_llava
from benchmarks.shapes import build, question
from tops_engine.cli.tables import rich_table
from tops_engine.device.machine import machine
from tops_engine.errors import TopsError
from tops_engine.evaluation.tables import Table
from tops_engine.settings import Pruning

PRUNINGS = {
    "unpruned": Pruning(method="none", keep=1.0),
    "tops 0.222": Pruning(keep=0.222),
    "tops 0.111": Pruning(keep=0.111),
    "fastv 0.222": Pruning(method="fastv", keep=0.222),
    "visionzip 0.222": Pruning(method="visionzip", keep=0.222),
}
GENERATE = "transformers generate"
#: What answers once before the rounds; the least work.
WARM_UP = "tops 0.111"
SHOWN = ("first_token", "next_token", "answer")

Row = dict[str, Any]


def qwen_3b() -> Published:
    """Return Qwen2.5-VL-3B: the tower of 7B, and a language model of width 2048."""
    larger = SIZES["qwen2.5-vl-7b"]
    text = {"hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36}
    text |= {"num_attention_heads": 16, "num_key_value_heads": 2, "vocab_size": 151936}
    config = larger.config | {
        "text_config": larger.config["text_config"] | text,
        "vision_config": larger.config["vision_config"] | {"out_hidden_size": 2048},
        "tie_word_embeddings": True,
    }
    return replace(larger, checkpoint="Qwen/Qwen2.5-VL-3B-Instruct", config=config, presets=None)


SHAPES: dict[str, Callable[[], Published]] = {
    "small": small_llava,
    "smolvlm-256m": lambda: SIZES["smolvlm-256m"],
    "qwen2.5-vl-3b": qwen_3b,
    "llava-1.5-7b": lambda: SIZES["llava-1.5-7b"],
}


def measure(name: str, dtype: torch.dtype, num_text: int, num_new: int, rounds: int) -> Iterator[list[Row]]:
    """Yield after each round a row for each way of answering: median seconds of each part."""
    begun = time.perf_counter()
    published = SHAPES[name]()
    family = build(published, "cpu", dtype)
    conversation = question(published, num_text)

    def timed(pruning: Pruning) -> Callable[[], Times]:
        return lambda: engine_times(family, conversation, pruning, num_new)

    ways: dict[str, Callable[[], Times]] = {label: timed(pruning) for label, pruning in PRUNINGS.items()}
    ways[GENERATE] = lambda: transformers_times(family, conversation, num_new)
    ways[WARM_UP]()
    print(f"{name}: {time.perf_counter() - begun:.0f} s to build the model and to warm up", flush=True)
    runs: dict[str, list[Times]] = {label: [] for label in ways}
    errors: dict[str, str] = {}
    for turn in range(rounds):
        begun = time.perf_counter()
        labels = list(ways)
        # Another way is first each time: what ran before has left its memory and caches.
        for label in labels[turn % len(labels) :] + labels[: turn % len(labels)]:
            if label in errors:
                continue
            try:
                runs[label].append(ways[label]())
            except TopsError as error:
                errors[label] = str(error)
        print(f"{name}: {time.perf_counter() - begun:.0f} s for round {turn + 1} of {rounds}", flush=True)
        about = {"shape": name, "checkpoint": published.checkpoint, "rounds": turn + 1}
        yield [about | {"way": label} | summary(runs[label], errors.get(label)) for label in ways]


def summary(done: Sequence[Times], error: str | None) -> Row:
    """Return the medians of a way of answering, or why it cannot run."""
    return {"error": error} if error else {part: median(times[part] for times in done) for part in done[0]}


def table(rows: Sequence[Row]) -> Table:
    """Make a table of milliseconds, and how many times faster than unpruned the first token and the answer come."""
    headings = ("first token ms", "next token ms", "answer ms", "first token x", "answer x")
    shown = Table.of_numbers("Published shapes on the CPU", *headings)
    for row in rows:
        name = f"{row['shape']}, {row['way']}"
        if "error" in row:
            shown.add_row(f"{name}: {row['error']}")
            continue
        base = next(one for one in rows if (one["shape"], one["way"]) == (row["shape"], "unpruned"))
        times = [f"{1e3 * row[part]:.1f}" for part in SHOWN]
        shown.add_row(name, *times, *(f"{base[part] / row[part]:.2f}" for part in ("first_token", "answer")))
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shapes", nargs="+", choices=list(SHAPES))
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--text", type=int, default=60, help="tokens of the question")
    parser.add_argument("--tokens", type=int, default=16, help="tokens of the answer")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the results here, after each round")
    arguments = parser.parse_args()
    # The load before this process adds its own.
    setting = {"machine": machine(), "dtype": arguments.dtype, "tokens": arguments.tokens}
    rows: list[Row] = []
    for name in arguments.shapes:
        earlier = rows
        for measured in measure(
            name, getattr(torch, arguments.dtype), arguments.text, arguments.tokens, arguments.rounds
        ):
            rows = earlier + measured
            if arguments.json:
                text = json.dumps(setting | {"results": rows}, indent=2)
                arguments.json.write_text(f"{text}\n", encoding="utf-8")
    Console(width=160).print(rich_table(table(rows)))


if __name__ == "__main__":
    main()
