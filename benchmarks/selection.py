"""Time of the greedy selection: the algorithm as the paper writes it against the incremental form.

    python -m benchmarks.selection --json benchmarks/results/selection.json

Both run in turns on the same clustered tokens; times are medians over the repeats, of the processor's time that the
process got, so that other work on the machine counts little. Use one thread (OMP_NUM_THREADS=1): the times of more
would be added up.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import process_time
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.machine import machine
from tops_engine.selection import cosine_similarity, greedy_select, greedy_select_reference

# The second stage of short and long pictures, then the first of LLaVA-1.5 and LLaVA-NeXT.
SIZES = [(64, 16), (128, 32), (300, 75), (576, 128), (2880, 640)]
DTYPES = [torch.float32, torch.float64]


def clustered_tokens(num: int, size: int = 1024, clusters: int = 40) -> tuple[Tensor, Tensor]:
    """Float64 features [num, size] around some centres, and relevance [num]."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(clusters, size, generator=generator, dtype=torch.float64)
    noise = torch.randn(num, size, generator=generator, dtype=torch.float64)
    features = centres[torch.randint(clusters, (num,), generator=generator)] + 0.5 * noise
    return features, torch.rand(num, generator=generator, dtype=torch.float64)


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    start = process_time()
    result = function()
    return process_time() - start, result


def measure(num: int, num_keep: int, dtype: torch.dtype, repeats: int, with_reference: bool) -> dict[str, Any]:
    features, relevance = (tensor.to(dtype) for tensor in clustered_tokens(num))
    forms: dict[str, Callable[[], Any]] = {
        "similarity": lambda: cosine_similarity(features[None]),
        "incremental": lambda: greedy_select(features[None], relevance[None], num_keep)[0].tolist(),
    }
    if with_reference:
        forms["reference"] = lambda: greedy_select_reference(features, relevance, num_keep)
    for name in ("similarity", "incremental"):
        forms[name]()  # the first run pays for starting threads and libraries
    runs = [{name: timed(form) for name, form in forms.items()} for _ in range(repeats)]
    seconds = {name: median(run[name][0] for run in runs) for name in forms}
    same = all(run["incremental"][1] == run["reference"][1] for run in runs) if with_reference else None
    return {
        "tokens": num,
        "keep": num_keep,
        "dtype": str(dtype).removeprefix("torch."),
        "repeats": repeats,
        "reference_s": seconds.get("reference"),
        "incremental_s": seconds["incremental"],
        "similarity_s": seconds["similarity"],
        "speedup": seconds["reference"] / seconds["incremental"] if with_reference else None,
        "same_indices": same,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the results here")
    parser.add_argument("--repeats", type=int, default=5, help="repeats up to 1000 tokens; larger sizes run once")
    parser.add_argument("--skip-reference-above", type=int, metavar="N", help="no reference for more tokens than this")
    arguments = parser.parse_args()

    limit = arguments.skip_reference_above
    rows = [
        measure(num, keep, dtype, arguments.repeats if limit or num <= 1000 else 1, limit is None or num <= limit)
        for num, keep in SIZES
        for dtype in DTYPES
    ]
    table = Table(title=f"Greedy selection on the CPU, {torch.get_num_threads()} threads (similarity is part of both)")
    for column in ("tokens", "keep", "dtype", "similarity", "reference", "incremental", "speedup", "same indices"):
        table.add_column(column, justify="right")
    for row in rows:
        seconds = [row[name] for name in ("similarity_s", "reference_s", "incremental_s")]
        times = ["-" if second is None else f"{second * 1000:.1f} ms" for second in seconds]
        speedup = "-" if row["speedup"] is None else f"{row['speedup']:.1f}x"
        same = {None: "-", True: "yes", False: "NO"}[row["same_indices"]]
        table.add_row(str(row["tokens"]), str(row["keep"]), row["dtype"], *times, speedup, same)
    Console(width=100).print(table)
    if arguments.json:
        result = machine() | {"results": rows}
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
