"""Time the greedy selection: the paper's algorithm against the incremental form.

    python -m benchmarks.selection --json benchmarks/results/selection.json
    python -m benchmarks.selection --device cuda --json benchmarks/results/selection-cuda.json

Both run in turns on the same clustered tokens. Times are medians over the repeats of the process's CPU time, on which
other work on the machine has little influence. Use one thread (OMP_NUM_THREADS=1), because the CPU times of several
threads are added up.

On a GPU the tokens are bfloat16 and have the width of a 7B model. The benchmark times the similarity, the whole
selection alone and in a queue (as in a prefill, in which the host is ahead), and the plain loop of torch operations.
``--tune`` tries other constants of the kernel.
"""

import argparse
import json
from collections.abc import Callable
from itertools import product
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from typing import Any
from unittest import mock

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.machine import machine
from tops_engine.device.checks import deferred_checks
from tops_engine.selection import cosine_similarity, greedy, greedy_select, greedy_select_reference
from tops_engine.selection.batch import checked_batch
from tops_engine.selection.objective import Objective

# The second stage of small and large pictures, then the first stage of LLaVA-1.5 and LLaVA-NeXT.
SIZES = [(64, 16), (128, 32), (300, 75), (576, 128), (2880, 640)]
# The stages of LLaVA-1.5 and LLaVA-NeXT at keep 0.111.
GPU_SIZES = [(128, 32), (576, 128), (640, 160), (2880, 640)]
# The number of selections in a queue.
QUEUE = 10
OBJECTIVE = Objective(0.5, 0.5, True, "mean")
DTYPES = [torch.float32, torch.float64]


def clustered_tokens(num: int, size: int = 1024, clusters: int = 40) -> tuple[Tensor, Tensor]:
    """Return float64 features [num, size] around random centres, and relevance [num]."""
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
        forms[name]()  # the first run includes starting threads and libraries
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


def seconds_on(device: str, work: Callable[[], Any], times: int = 1) -> float:
    """Return the wall-clock seconds of one of ``times`` calls in a row."""
    synchronize(device)
    begun = perf_counter()
    for _ in range(times):
        work()
    synchronize(device)
    return (perf_counter() - begun) / times


def synchronize(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def measure_on(device: str, num: int, num_keep: int, num_images: int, width: int, repeats: int) -> dict[str, Any]:
    """Measure the selection of bfloat16 tokens of ``num_images`` pictures on an accelerator."""
    tokens, rated = clustered_tokens(num, width)
    features = tokens.to(torch.bfloat16).expand(num_images, -1, -1)
    relevance = rated.float().expand(num_images, -1)
    there, rating = features.to(device), relevance.to(device)
    forms: dict[str, Callable[[], Any]] = {
        "similarity": lambda: cosine_similarity(there),
        "selection": lambda: greedy_select(there, rating, num_keep),
    }

    def measured() -> dict[str, float]:
        with deferred_checks() as checks:
            times = {name: seconds_on(device, form) for name, form in forms.items()}
            times["queued"] = seconds_on(device, forms["selection"], QUEUE)
        checks.settle()
        return times

    measured()  # compile and warm up
    runs = [measured() for _ in range(repeats)]
    batch = checked_batch(there, rating, num_keep, None)
    plain = seconds_on(device, lambda: greedy._select_on_device(batch, OBJECTIVE)) if num_images == 1 else None
    expected = greedy_select(features[:1], relevance[:1], num_keep).tolist()[0]
    return {
        "tokens": num,
        "keep": num_keep,
        "images": num_images,
        "repeats": repeats,
        **{f"{name}_s": median(run[name] for run in runs) for name in runs[0]},
        "plain_s": plain,
        "same_as_on_host": all(order == expected for order in forms["selection"]().tolist()),
    }


def tuned(device: str, num: int, num_keep: int, width: int, repeats: int) -> list[dict[str, Any]]:
    """Measure the selection with other constants of the kernel."""
    from tops_engine.selection import greedy_kernel

    rows = []
    for num_rows, num_warps in product((4, 8, 16), (4, 8, 16, 32)):
        with (
            mock.patch.object(greedy_kernel, "ROWS", num_rows),
            mock.patch.object(greedy_kernel, "num_warps", lambda _, warps=num_warps: warps),
        ):
            row = measure_on(device, num, num_keep, 1, width, repeats)
        rows.append({"tokens": num, "rows": num_rows, "warps": num_warps, "queued_s": row["queued_s"]})
    return rows


def report_on(device: str, width: int, repeats: int, tune: bool, sizes: list[tuple[int, int]]) -> dict[str, Any]:
    """Print and return all rows of an accelerator."""
    rows = [measure_on(device, *size, images, width, repeats) for size in sizes for images in (1, 8)]
    names = ("similarity_s", "selection_s", "queued_s", "plain_s")
    table = Table(title=f"Greedy selection on {device}: milliseconds")
    for column in ("tokens", "keep", "images", "similarity", "selection", "queued", "plain loop", "as on the host"):
        table.add_column(column, justify="right")
    for row in rows:
        times = ["-" if row[name] is None else f"{1e3 * row[name]:.2f}" for name in names]
        same = "yes" if row["same_as_on_host"] else "NO"
        table.add_row(str(row["tokens"]), str(row["keep"]), str(row["images"]), *times, same)
    Console(width=100).print(table)
    constants = [row for size in sizes for row in tuned(device, *size, width, repeats)] if tune else []
    for row in constants:
        print(f"{row['tokens']} tokens, {row['rows']} rows, {row['warps']} warps: {1e3 * row['queued_s']:.2f} ms")
    return {"device": device, "width": width, "results": rows, "constants": constants}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the results here")
    parser.add_argument("--repeats", type=int, default=5, help="repeats up to 1000 tokens; larger sizes run once")
    parser.add_argument("--skip-reference-above", type=int, metavar="N", help="no reference for more tokens than this")
    parser.add_argument("--device", default="cpu", help="cpu, or cuda for bfloat16 tokens on a GPU")
    parser.add_argument("--width", type=int, default=4096, help="width of the tokens on a GPU")
    parser.add_argument("--tune", action="store_true", help="on a GPU: try other constants of the kernel too")
    arguments = parser.parse_args()

    if arguments.device != "cpu":
        result = machine(arguments.device) | report_on(
            arguments.device, arguments.width, arguments.repeats, arguments.tune, GPU_SIZES
        )
        if arguments.json:
            arguments.json.write_text(json.dumps(result, indent=2) + "\n")
        return
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
