"""Compare the time to the first token of a second question about a picture with that of the first question.

    python -m benchmarks.reuse --json benchmarks/results/reuse.json
    python -m benchmarks.reuse --shape llava-next-7b --device cuda --dtype bfloat16 --json reuse-next.json

First and second questions run in turns, and the caches are cleared after each pair. Times are medians over the repeats;
the ratio is the median of the pairs' ratios. The default is the embedded model on the CPU.
"""

import argparse
import json
from pathlib import Path
from statistics import median
from typing import Any

import torch
from PIL import Image
from rich.console import Console
from rich.table import Table

from benchmarks.machine import machine
from benchmarks.published_sizes import SIZES
from benchmarks.shapes import build, random_picture
from tops_engine.answers.report import Timings
from tops_engine.conversation.messages import Conversation, read_conversation, user_message
from tops_engine.families import Family
from tops_engine.generation.encoded_pictures import EncodedPictures
from tops_engine.generation.prefix_cache import PrefixCache
from tops_engine.generation.run import Run
from tops_engine.loading import load_family
from tops_engine.mini.scenes import sample_picture
from tops_engine.settings import Generation, ModelSpec, Pruning

QUESTIONS = ("How many objects are there?", "What digits are written?")
KEEPS = [0.111, 0.222, 0.5, 1.0]
PARTS = ("prepare", "vision", "selection", "prefill")


def ask(
    family: Family, conversation: Conversation, keep: float, prefixes: PrefixCache, encoded: EncodedPictures
) -> Timings:
    pruning, generation = Pruning(keep=keep), Generation(max_tokens=1)
    run = Run(family, "benchmark", [conversation], pruning, generation, None, prefixes, encoded)
    run.start()
    return run.answers()[0].timings


def measure(family: Family, picture: Image.Image, keep: float, repeats: int) -> dict[str, Any]:
    conversations = [read_conversation([user_message(question, picture)]) for question in QUESTIONS]
    pairs = []
    for _ in range(repeats + 1):
        family.forget_pictures()
        caches = PrefixCache(2**30), EncodedPictures(2**30)
        pairs.append([ask(family, conversation, keep, *caches) for conversation in conversations])
    firsts, seconds = zip(*pairs[1:], strict=True)  # the first pair warms up
    return {
        "keep": keep,
        "repeats": repeats,
        "first_s": median(timings.first_token for timings in firsts),
        "second_s": median(timings.first_token for timings in seconds),
        "ratio": median(second.first_token / first.first_token for first, second in zip(firsts, seconds, strict=True)),
        "first_parts_s": {part: median(getattr(timings, part) for timings in firsts) for part in PARTS},
        "second_parts_s": {part: median(getattr(timings, part) for timings in seconds) for part in PARTS},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SIZES, help="random weights of this published size; default: mini")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["bfloat16", "float16", "float32"])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--json", type=Path, help="write the results here")
    arguments = parser.parse_args()

    model = arguments.shape or "mini"
    if arguments.shape:
        family = build(SIZES[model], arguments.device, getattr(torch, arguments.dtype))
        picture = random_picture(SIZES[model])
    else:
        family, picture = load_family(ModelSpec(model=model, device=arguments.device)), sample_picture()
    rows = [measure(family, picture, keep, arguments.repeats) for keep in KEEPS]
    table = Table(title=f"{model}: milliseconds to the first token, of which {', '.join(PARTS)}")
    for column in ("keep", "first question", "second question", "ratio"):
        table.add_column(column, justify="right")
    for row in rows:
        times = [_in_words(row[f"{which}_s"], row[f"{which}_parts_s"]) for which in ("first", "second")]
        table.add_row(str(row["keep"]), *times, f"{100 * row['ratio']:.0f} %")
    Console(width=120).print(table)
    if arguments.json:
        about = machine(arguments.device) | {"model": model, "device": arguments.device}
        arguments.json.write_text(json.dumps(about | {"results": rows}, indent=2) + "\n")


def _in_words(total: float, parts: dict[str, float]) -> str:
    return f"{1e3 * total:.1f} ({', '.join(f'{1e3 * seconds:.1f}' for seconds in parts.values())})"


if __name__ == "__main__":
    main()
