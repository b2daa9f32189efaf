"""Captions a second: many pictures at several batch sizes, unpruned and pruned, in turns.

    python -m benchmarks.throughput --json benchmarks/results/throughput.json
    python -m benchmarks.throughput --shape llava-next-7b --device cuda --dtype bfloat16 --batches 1,8,32

Prompts are sorted by length before they are put into batches, so that little is padded. Medians over the rounds.
"""

import argparse
import json
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.machine import machine
from benchmarks.published_sizes import SIZES
from benchmarks.shapes import build, question
from tops_engine.families import Family
from tops_engine.generation.run import Run
from tops_engine.loading import load_family
from tops_engine.messages import Conversation, read_conversation, user_message
from tops_engine.mini.scenes import generate
from tops_engine.settings import Generation, ModelSpec, Pruning

QUESTIONS = ("Describe the picture.", "How many objects are there?", "What digits are written in the picture?")


def seconds_for(family: Family, conversations: list[Conversation], batch_size: int, keep: float, num_new: int) -> float:
    """Time of answering all, preparation included."""
    family.forget_pictures()
    begun = perf_counter()
    for start in range(0, len(conversations), batch_size):
        batch = conversations[start : start + batch_size]
        run = Run(family, "benchmark", batch, Pruning(keep=keep), Generation(max_tokens=num_new))
        run.start()
        while not run.done:
            run.step()
        run.answers()
    if family.decoder.device.type == "cuda":
        torch.cuda.synchronize(family.decoder.device)
    return perf_counter() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SIZES, help="random weights of this published size; default: mini")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["bfloat16", "float16", "float32"])
    parser.add_argument("--pictures", type=int, default=64)
    parser.add_argument("--batches", default="1,8,32", help="batch sizes, separated by commas")
    parser.add_argument("--keeps", default="1.0,0.222,0.111", help="budgets, separated by commas")
    parser.add_argument("--tokens", type=int, default=8, help="tokens of a caption, at most")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the results here")
    arguments = parser.parse_args()

    if arguments.shape:
        family = build(SIZES[arguments.shape], arguments.device, getattr(torch, arguments.dtype))
        conversations = [question(SIZES[arguments.shape], 20 + index % 41) for index in range(arguments.pictures)]
    else:
        family = load_family(ModelSpec(model="mini", device=arguments.device))
        pictures = [generate(seed, "test").image for seed in range(arguments.pictures)]
        messages = [user_message(QUESTIONS[index % 3], picture) for index, picture in enumerate(pictures)]
        conversations = [read_conversation([message]) for message in messages]
    conversations.sort(key=lambda conversation: len(conversation.question))

    cases = [(int(batch), float(keep)) for batch in arguments.batches.split(",") for keep in arguments.keeps.split(",")]
    seconds_for(family, conversations[:2], 2, 0.5, 2)  # warms up
    times: dict[tuple[int, float], list[float]] = {case: [] for case in cases}
    for _ in range(arguments.rounds):
        for case in cases:
            times[case].append(seconds_for(family, conversations, *case, arguments.tokens))
    rows: list[dict[str, Any]] = [
        {"batch": batch, "keep": keep, "pictures_a_second": len(conversations) / median(times[batch, keep])}
        for batch, keep in cases
    ]
    base = rows[0]["pictures_a_second"]
    table = Table(title=f"{arguments.shape or 'mini'}: {len(conversations)} pictures")
    for column in ("batch", "keep", "pictures a second", "times the first row"):
        table.add_column(column, justify="right")
    for row in rows:
        speed = row["pictures_a_second"]
        table.add_row(str(row["batch"]), str(row["keep"]), f"{speed:.1f}", f"{speed / base:.2f}")
    Console(width=100).print(table)
    if arguments.json:
        about = machine(arguments.device) | {"model": arguments.shape or "mini", "pictures": len(conversations)}
        arguments.json.write_text(json.dumps(about | {"rounds": arguments.rounds, "results": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
