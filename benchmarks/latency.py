"""Where the time of one answer goes: unpruned, pruned, and transformers' own ``generate`` beside them.

    python -m benchmarks.latency --json benchmarks/results/latency.json
    python -m benchmarks.latency --shape llava-next-7b --device cuda --dtype bfloat16 --json latency-next.json

All sides take turns in one run; times are medians over the rounds, ratios medians of the rounds' ratios to our
unpruned run. Reading the picture and writing the template is in nobody's time. Without a shape this is the embedded
model and its sample picture; a shape is built with random weights (see ``benchmarks/shapes.py``).
"""

import argparse
import json
from collections.abc import Callable
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
from tops_engine.mini.scenes import sample_picture
from tops_engine.settings import Generation, ModelSpec, Pruning

PARTS = ("vision", "selection", "prefill")
KEEPS = (0.5, 0.222, 0.111)
Times = dict[str, float]


def engine_times(family: Family, conversation: Conversation, pruning: Pruning, num_new: int) -> Times:
    """Seconds of each part, to the first token and for each further one."""
    run = Run(family, "benchmark", [conversation], pruning, Generation(max_tokens=num_new))
    run.start()
    while not run.done:
        run.step()
    (answer,) = run.answers()
    parts = {part: getattr(answer.timings, part) for part in PARTS}
    further = max(answer.usage.completion_tokens - 1, 1)
    return parts | {"first_token": sum(parts.values()), "next_token": answer.timings.decode / further}


def transformers_times(family: Family, conversation: Conversation, num_new: int) -> Times:
    """The same two times of ``generate``: what one token takes, and what more tokens take beyond that."""
    prompt = family.prepare(conversation)
    device, dtype = family.decoder.device, family.decoder.dtype
    inputs = {
        name: value.to(device, dtype if value.is_floating_point() else None) for name, value in prompt.pixels.items()
    }
    inputs["input_ids"] = prompt.input_ids[None].to(device)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])

    def generate(count: int) -> tuple[float, int]:
        begun = perf_counter()
        written = family.model.generate(**inputs, max_new_tokens=count, do_sample=False)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return perf_counter() - begun, written.shape[1] - len(prompt.input_ids)

    first, _ = generate(1)
    whole, count = generate(num_new)
    return {"first_token": first, "next_token": max(whole - first, 0.0) / max(count - 1, 1)}


def measure(family: Family, conversation: Conversation, num_new: int, rounds: int) -> list[dict[str, Any]]:
    sides: dict[str, Callable[[], Times]] = {
        "transformers generate": lambda: transformers_times(family, conversation, num_new),
        "unpruned": lambda: engine_times(family, conversation, Pruning(keep=1.0), num_new),
    }
    for keep in KEEPS:
        sides[f"keep {keep}"] = lambda keep=keep: engine_times(family, conversation, Pruning(keep=keep), num_new)  # type: ignore[misc]
    done: dict[str, list[Times]] = {name: [] for name in sides}
    for round_ in range(rounds + 1):
        for name, side in sides.items():
            family.forget_pictures()
            times = side()
            if round_:  # the first one warms up
                done[name].append(times)
    rows = []
    for name, runs in done.items():
        medians = {key: median(run[key] for run in runs) for key in runs[0]}
        pairs = zip(runs, done["unpruned"], strict=True)
        ratio = median(run["first_token"] / unpruned["first_token"] for run, unpruned in pairs)
        rows.append({"side": name, "seconds": medians, "first_token_ratio": ratio})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SIZES, help="random weights of this published size; default: mini")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["bfloat16", "float16", "float32"])
    parser.add_argument("--tokens", type=int, default=16, help="tokens of the answer, at most")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--json", type=Path, help="write the results here")
    arguments = parser.parse_args()

    if arguments.shape:
        family = build(SIZES[arguments.shape], arguments.device, getattr(torch, arguments.dtype))
        conversation = question(SIZES[arguments.shape], 60)
    else:
        family = load_family(ModelSpec(model="mini", device=arguments.device))
        conversation = read_conversation([user_message("Describe the picture.", sample_picture())])
    rows = measure(family, conversation, arguments.tokens, arguments.rounds)
    model = arguments.shape or "mini"
    table = Table(title=f"{model}: milliseconds, medians of {arguments.rounds}")
    for column in ("", *PARTS, "first token", "of unpruned", "each further token"):
        table.add_column(column, justify="right" if column else "left")
    for row in rows:
        seconds = row["seconds"]
        cells = [f"{1e3 * seconds[part]:.1f}" if part in seconds else "-" for part in (*PARTS, "first_token")]
        ratio = f"{100 * row['first_token_ratio']:.0f} %"
        table.add_row(row["side"], *cells, ratio, f"{1e3 * seconds['next_token']:.1f}")
    Console(width=110).print(table)
    if arguments.json:
        about = machine(arguments.device) | {"model": model, "device": arguments.device, "rounds": arguments.rounds}
        arguments.json.write_text(json.dumps(about | {"results": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
