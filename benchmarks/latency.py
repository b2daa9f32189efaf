"""Time the parts of one answer: unpruned, pruned, and by transformers' own ``generate``.

    python -m benchmarks.latency --json benchmarks/results/latency.json
    python -m benchmarks.latency --shape llava-next-7b --device cuda --dtype bfloat16 --compile --tokens 128
    python -m benchmarks.latency --shape smolvlm-256m --text 600 --compile --tokens 32 --rounds 5 --json decode.json

All sides run in turns; times are medians over the rounds, and ratios are medians of the rounds' ratios to our
unpruned run. ``prepare`` is the template, the tokenizer and the image processor, which a new picture needs; the first
token is counted from there on, and the whole answer from the beginning. No time includes reading the file. Without
--shape, the embedded model answers about its sample picture; with --shape, the model has random weights (see
``benchmarks/shapes.py``). The floor of a further token is the time to read its weights, keys and values at the
bandwidth that the device reaches in the same run.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.floor import bandwidth, bytes_a_token
from benchmarks.machine import machine
from benchmarks.published_sizes import SIZES
from benchmarks.shapes import build, question
from tops_engine.conversation.messages import Conversation, read_conversation, user_message
from tops_engine.families import Family
from tops_engine.generation.run import Run
from tops_engine.generation.static import StepPool
from tops_engine.loading import load_family
from tops_engine.mini.scenes import sample_picture
from tops_engine.settings import Generation, ModelSpec, Pruning
from tops_engine.verification.transformers_model import forward_inputs

PARTS = ("prepare", "vision", "selection", "prefill", "decode")
KEEPS = (0.5, 0.222, 0.111)
Times = dict[str, float]


def engine_times(
    family: Family, conversation: Conversation, pruning: Pruning, num_new: int, steps: StepPool | None = None
) -> Times:
    """Return the seconds of each part, to the first token, for each further one and of all, and the bytes of one."""
    run = Run(family, "benchmark", [conversation], pruning, Generation(max_tokens=num_new), steps=steps)
    run.start()
    while not run.done:
        run.step()
    (answer,) = run.answers()
    parts = {part: getattr(answer.timings, part) for part in PARTS}
    further = max(answer.usage.completion_tokens - 1, 1)
    return parts | {
        "first_token": parts["vision"] + parts["selection"] + parts["prefill"],
        "next_token": parts["decode"] / further,
        "answer": sum(parts.values()),
        "bytes_a_token": bytes_a_token(family.decoder, answer),
    }


class TokenTimes:
    """A streamer of transformers that notes when ``generate`` hands out the prompt and each token."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: Tensor) -> None:
        self.times.append(perf_counter())

    def end(self) -> None:
        """Do nothing: the last token was noted."""


def transformers_times(family: Family, conversation: Conversation, num_new: int) -> Times:
    """Return the times of ``generate``: preparing, to the first token, for each further one, and of all."""
    begun = perf_counter()
    family.prepare(conversation)
    prepare = perf_counter() - begun
    seconds, _, given_out = _generate(family, conversation, num_new)
    _, first, *further = given_out  # the first entry is the prompt
    next_token = (further[-1] - first) / len(further) if further else 0.0
    return {"prepare": prepare, "first_token": first, "next_token": next_token, "answer": prepare + seconds}


def _generate(family: Family, conversation: Conversation, num_new: int) -> tuple[float, list[int], list[float]]:
    """Run transformers' ``generate`` on a prepared prompt.

    Return its seconds, its tokens, and the seconds after which it handed out the prompt and each token.
    """
    prompt = family.prepare(conversation)
    inputs, device, streamer = forward_inputs(family, prompt), family.decoder.device, TokenTimes()
    begun = perf_counter()
    # With random weights no token ends an answer, so generate has no token to use for padding.
    written = family.model.generate(
        **inputs, max_new_tokens=num_new, do_sample=False, pad_token_id=0, streamer=streamer
    )
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    seconds = perf_counter() - begun
    return seconds, written[0, len(prompt.input_ids) :].tolist(), [moment - begun for moment in streamer.times]


def generated_tokens(family: Family, conversation: Conversation, num_new: int) -> list[int]:
    """Return the tokens of the answer of transformers' ``generate``."""
    return _generate(family, conversation, num_new)[1]


def answer_tokens(
    family: Family, conversation: Conversation, pruning: Pruning, num_new: int, steps: StepPool | None = None
) -> list[int]:
    """Return the tokens of the engine's answer."""
    run = Run(family, "benchmark", [conversation], pruning, Generation(max_tokens=num_new), steps=steps)
    run.start()
    while not run.done:
        run.step()
    return run.answers()[0].token_ids


def sides_of(
    family: Family, conversation: Conversation, num_new: int, keeps: Sequence[float], pools: dict[str, StepPool | None]
) -> dict[str, Callable[[], Times]]:
    """Return the sides that run in turns: ``generate``, and each pruning with each decoding mode."""
    sides: dict[str, Callable[[], Times]] = {
        "transformers generate": lambda: transformers_times(family, conversation, num_new)
    }
    for keep in keeps:
        label = "unpruned" if keep == 1.0 else f"keep {keep}"
        for how, pool in pools.items():
            pruning = Pruning(keep=keep)
            sides[f"{label}{how}"] = partial(engine_times, family, conversation, pruning, num_new, pool)
    return sides


def measure(family: Family, sides: dict[str, Callable[[], Times]], rounds: int) -> tuple[list[dict[str, Any]], float]:
    """Return the medians of each side with the floor of a further token, and the bandwidth in bytes a second.

    The bandwidth is measured in each round and the best one counts, because other work on the machine slows memory.
    """
    done: dict[str, list[Times]] = {name: [] for name in sides}
    bytes_a_second = 0.0
    for round_ in range(rounds + 1):
        bytes_a_second = max(bytes_a_second, bandwidth(family.decoder.device, family.decoder.dtype))
        for name, side in sides.items():
            family.forget_pictures()
            times = side()
            if round_:  # the first round warms up
                done[name].append(times)
    rows = []
    for name, runs in done.items():
        medians = {key: median(run[key] for run in runs) for key in runs[0]}
        pairs = list(zip(runs, done["unpruned"], strict=True))
        ratios = {
            f"{name}_ratio": median(run[name] / unpruned[name] for run, unpruned in pairs)
            for name in ("first_token", "answer")
        }
        # For each token, generate reads the same bytes as our unpruned answer.
        num_bytes = medians.pop("bytes_a_token", None) or median(run["bytes_a_token"] for run in done["unpruned"])
        floor = {"bytes_a_token": num_bytes, "next_token_floor_s": num_bytes / bytes_a_second}
        rows.append({"side": name, "seconds": medians, **ratios, **floor})
    return rows, bytes_a_second


def largest_part(seconds: Times) -> str:
    """Return the part of an answer that takes longest, which is the floor of what saving elsewhere can reach."""
    return max(PARTS, key=lambda part: seconds[part]) if all(part in seconds for part in PARTS) else "-"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SIZES, help="random weights of this published size; default: mini")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["bfloat16", "float16", "float32"])
    parser.add_argument("--tokens", type=int, default=16, help="largest number of tokens of the answer")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--attention", default="sdpa", choices=["sdpa", "eager"])
    parser.add_argument("--compile", action="store_true", help="also measure answers by compiled steps")
    parser.add_argument(
        "--text", type=int, help="ask with this many text tokens and no picture, to time decoding alone"
    )
    parser.add_argument("--json", type=Path, help="write the results here")
    arguments = parser.parse_args()

    if arguments.shape:
        dtype = getattr(torch, arguments.dtype)
        family = build(SIZES[arguments.shape], arguments.device, dtype, arguments.attention)
        conversation = question(SIZES[arguments.shape], 60)
    else:
        family = load_family(ModelSpec(model="mini", device=arguments.device, attention=arguments.attention))
        conversation = read_conversation([user_message("Describe the picture.", sample_picture())])
    if arguments.text:
        conversation = read_conversation([user_message("?" * arguments.text)])
    decoder = family.decoder
    pools: dict[str, StepPool | None] = {"": None}
    if arguments.compile and decoder.device.type == "cuda":
        pools[", recorded"] = StepPool(decoder, compiled=False)
    if arguments.compile:
        pools[", compiled"] = StepPool(decoder)
    keeps = (1.0,) if arguments.text else (1.0, *KEEPS)
    sides = sides_of(family, conversation, arguments.tokens, keeps, pools)
    rows, bytes_a_second = measure(family, sides, arguments.rounds)
    model = arguments.shape or "mini"
    title = f"{model}: milliseconds, medians of {arguments.rounds}; memory read at {bytes_a_second / 1e9:.1f} GB/s"
    table = Table(title=title)
    columns = ("first token", "of unpruned", "answer", "of unpruned", "largest part")
    for column in ("", *PARTS, *columns, "each further token", "floor", "reached"):
        table.add_column(column, justify="right" if column else "left")
    for row in rows:
        seconds = row["seconds"]
        cells = [f"{1e3 * seconds[part]:.1f}" if part in seconds else "-" for part in PARTS]
        for name in ("first_token", "answer"):
            cells += [f"{1e3 * seconds[name]:.1f}", f"{100 * row[f'{name}_ratio']:.0f} %"]
        floor, further = row["next_token_floor_s"], seconds["next_token"]
        decode = [f"{1e3 * further:.2f}", f"{1e3 * floor:.2f}", f"{100 * floor / further:.0f} %" if further else "-"]
        table.add_row(row["side"], *cells, largest_part(seconds), *decode)
    Console(width=170).print(table)
    if arguments.json:
        about = machine(arguments.device) | {"model": model, "device": arguments.device, "rounds": arguments.rounds}
        about |= {"dtype": str(decoder.dtype).removeprefix("torch."), "bytes_a_second": bytes_a_second}
        about |= {"tokens": arguments.tokens, "attention": arguments.attention, "text": arguments.text}
        arguments.json.write_text(json.dumps(about | {"results": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
