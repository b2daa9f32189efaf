"""Time every pruning method to the first token of one answer of mini, at several budgets.

    python -m benchmarks.methods_time --json benchmarks/results/methods-time.json
    python -m benchmarks.methods_time --methods tops,divprune --rounds 5

All methods and budgets run in turns, after one round that warms up. Times are medians over the rounds, and ratios are
medians of the rounds' ratios to the unpruned answer. The first token is counted from the pixels on: vision tower,
selection (with the attention that a method asks for) and prefill. A budget that a method cannot meet is named with the
reason. On one quiet core the full run takes about five minutes.
"""

import argparse
import json
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.latency import Times, engine_times
from benchmarks.machine import machine
from tops_engine.conversation.messages import Conversation, read_conversation, user_message
from tops_engine.errors import TopsError
from tops_engine.families import Family
from tops_engine.loading import load_family
from tops_engine.mini.scenes import sample_picture
from tops_engine.settings import ModelSpec, Pruning
from tops_engine.settings.labels import read_prunings

PARTS = ("vision", "selection", "prefill", "first_token")
KEEPS = "0.5,0.222,0.111,0.056"


def measure(family: Family, conversation: Conversation, prunings: list[Pruning], rounds: int) -> list[dict[str, Any]]:
    """Return a row for each pruning: the medians of its times in seconds, or why it cannot run."""
    unpruned = Pruning(method="none")
    errors: dict[int, str] = {}
    done: dict[int, list[Times]] = {number: [] for number in range(len(prunings))}
    base: list[Times] = []

    def run(pruning: Pruning) -> Times:
        family.forget_pictures()
        return engine_times(family, conversation, pruning, num_new=1)

    for round_ in range(rounds + 1):  # the first round warms up
        times = run(unpruned)
        base += [times] if round_ else []
        for number in sorted(done.keys() - errors.keys()):
            try:
                times = run(prunings[number])
            except TopsError as error:
                errors[number] = str(error)
                continue
            done[number] += [times] if round_ else []
    rows = [{"method": "none", "keep": 1.0, "error": None, **_medians(base, base)}]
    for number, pruning in enumerate(prunings):
        row = {"method": pruning.label, "keep": pruning.budget, "error": errors.get(number)}
        rows.append(row if number in errors else row | _medians(done[number], base))
    return rows


def _medians(runs: list[Times], base: list[Times]) -> dict[str, Any]:
    ratios = [run["first_token"] / unpruned["first_token"] for run, unpruned in zip(runs, base, strict=True)]
    seconds = {part: median(run[part] for run in runs) for part in PARTS}
    return {"seconds": seconds, "first_token_ratio": median(ratios)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", default="all,tops:stages=first", help="labels of methods; all for every method")
    parser.add_argument("--keep", default=KEEPS, help="budgets, separated by commas")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path, help="write the results here")
    arguments = parser.parse_args()

    family = load_family(ModelSpec(model="mini", device="cpu"))
    conversation = read_conversation([user_message("Describe the picture.", sample_picture())])
    rows = measure(family, conversation, read_prunings(arguments.methods, arguments.keep), arguments.rounds)
    table = Table(title=f"mini on one picture: milliseconds, medians of {arguments.rounds}")
    for column in ("method", "keep", *PARTS, "of unpruned"):
        table.add_column(column, justify="left" if column == "method" else "right")
    for row in rows:
        if row["error"] is None:
            times = [f"{1e3 * row['seconds'][part]:.2f}" for part in PARTS]
            table.add_row(row["method"], str(row["keep"]), *times, f"{100 * row['first_token_ratio']:.0f} %")
    Console(width=120).print(table)
    if arguments.json:
        about = machine("cpu") | {"model": "mini", "device": "cpu", "rounds": arguments.rounds}
        arguments.json.write_text(json.dumps(about | {"results": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
