"""Measure vLLM on a GPU with and without pruning, in about four minutes: first tokens and requests a second.

    python -m benchmarks.serving_gpu --json serving-gpu.json
    python -m benchmarks.serving_gpu --model qwen2.5-vl-3b --size 1024x768 -- --max-model-len 8192

Run it in an environment with vLLM and tops-engine, on an idle GPU. Two servers share the GPU, one unpruned and one
pruned; the model has random weights unless it is a checkpoint. They answer the same requests in turns, with pictures
that no cache has: one at a time, for the time to the first token, then many at once, for the rate. After each round the
results so far are written, so that a run that is cut short is not lost. vLLM compiles the model and records CUDA
graphs; that is part of the four minutes and takes most of them on the first run of a model.

On a CPU the run only shows that the script works: ``--model small --minutes 1 -- --dtype float32 --enforce-eager``.
"""

import argparse
import asyncio
import importlib.metadata
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.machine import machine
from benchmarks.published_sizes import SIZES
from benchmarks.serving import Reply, Requests, drive, source, summary
from tests.integrations.vllm_tops.servers import TOPS, VLLM, Server, environment, serving

SIDES = ("unpruned", "pruned")

#: Options of both servers on a GPU, unless they are given: each takes less than half of its memory.
ON_GPU = {"--gpu-memory-utilization": "0.45", "--max-model-len": "4096", "--dtype": "bfloat16"}


class Measurement:
    """Rounds of requests to two servers in turns.

    Args:
        servers: The unpruned one and the pruned one.
        requests: Makes requests with new pictures.
        concurrencies: Numbers of requests at once.
    """

    def __init__(self, servers: Sequence[Server], requests: Requests, concurrencies: Sequence[int]) -> None:
        self._servers, self._requests, self._concurrencies = servers, requests, concurrencies
        self._rates: dict[tuple[int, int], list[float]] = {}
        self._replies: dict[tuple[int, int], list[Reply]] = {}
        self.rounds = 0

    def warm_up(self) -> None:
        """Send requests that are not counted."""
        for server in self._servers:
            asyncio.run(drive(server.url, self._requests.distinct(2), 2))

    def run_round(self) -> None:
        """Ask both servers the same requests, at each concurrency; the one that is first changes with each round."""
        for concurrency in self._concurrencies:
            bodies = self._requests.distinct(max(4, 2 * concurrency))
            for side in (0, 1) if self.rounds % 2 else (1, 0):
                seconds, replies = asyncio.run(drive(self._servers[side].url, bodies, concurrency))
                self._rates.setdefault((concurrency, side), []).append(len(bodies) / seconds)
                self._replies.setdefault((concurrency, side), []).extend(replies)
        self.rounds += 1

    def rows(self) -> list[dict[str, Any]]:
        """Return a row for each concurrency and side, with the ratios of the pruned server to the unpruned one."""
        rows = []
        for concurrency in self._concurrencies:
            about = {"concurrency": concurrency}
            pair: list[dict[str, Any]] = [
                about
                | {"side": SIDES[side]}
                | summary(self._rates[concurrency, side], self._replies[concurrency, side])
                for side in (0, 1)
            ]
            unpruned, pruned = pair
            pruned["rate_ratio"] = pruned["requests_a_second"] / unpruned["requests_a_second"]
            for name in ("first_token_s", "first_token_p99_s", "next_token_s"):
                pruned[name.replace("_s", "_ratio")] = pruned[name] / unpruned[name]
            rows += [unpruned, pruned]
        return rows


def measure(measurement: Measurement, until: float, written: Any) -> None:
    """Run rounds as long as another one fits before ``until``, at least one; report the rows after each of them."""
    measurement.warm_up()
    longest = 0.0
    while not measurement.rounds or perf_counter() + longest < until:
        begun = perf_counter()
        measurement.run_round()
        longest = max(longest, perf_counter() - begun)
        written(measurement)


def table(title: str, rows: Sequence[dict[str, Any]]) -> Table:
    """Return the rows as a table; in brackets the ratio of the pruned server to the unpruned one."""
    result = Table(title=title)
    for column in ("at once", "side", "requests/s", "first token ms", "p99", "next token ms", "prompt"):
        result.add_column(column, justify="left" if column == "side" else "right")
    for row in rows:
        cells = [
            f"{scale * row[name]:.1f}" + (f" ({row[ratio]:.2f}x)" if ratio in row else "")
            for name, ratio, scale in (
                ("requests_a_second", "rate_ratio", 1.0),
                ("first_token_s", "first_token_ratio", 1e3),
                ("first_token_p99_s", "first_token_p99_ratio", 1e3),
                ("next_token_s", "next_token_ratio", 1e3),
            )
        ]
        result.add_row(str(row["concurrency"]), row["side"], *cells, f"{row['prompt_tokens']:.0f}")
    return result


def main() -> None:
    begun = perf_counter()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = f"mini, small, one of {', '.join(SIZES)}, or a checkpoint"
    parser.add_argument("--model", default="llava-1.5-7b", help=names)
    parser.add_argument("--keep", default="0.222")
    parser.add_argument(
        "--minutes", type=float, default=4.0, help="of the whole run, the start of the servers included"
    )
    parser.add_argument("--concurrency", default="1,32", help="numbers of requests at once, separated by commas")
    parser.add_argument("--tokens", type=int, default=16, help="tokens of an answer")
    parser.add_argument("--size", default="672x672", help="width and height of the pictures")
    parser.add_argument("--json", type=Path, help="write the results here")
    parser.add_argument("options", nargs="*", help="options of vllm serve, after --")
    arguments = parser.parse_args()
    on_gpu = torch.cuda.is_available()
    about = machine("cuda" if on_gpu else "cpu") | {
        "vllm": importlib.metadata.version("vllm"),
        **{name: value for name, value in vars(arguments).items() if name != "json"},
    }

    def written(measurement: Measurement) -> None:
        if arguments.json:
            results = {"rounds": measurement.rounds, "results": measurement.rows()}
            arguments.json.write_text(json.dumps(about | results, indent=2) + "\n")

    width, height = map(int, arguments.size.split("x"))
    with tempfile.TemporaryDirectory() as name:
        model, needed = source(arguments.model, Path(name))
        missing = [
            part for option in ON_GPU.items() if on_gpu and option[0] not in arguments.options for part in option
        ]
        options = [*needed, *missing, *arguments.options, "--served-model-name", "benchmark"]
        pruned = [*TOPS, "serve", model, "--keep", arguments.keep, *options]
        variables = environment(HF_HUB_OFFLINE=os.environ.get("HF_HUB_OFFLINE", "0"))
        commands = [([*VLLM, "serve", model, *options], variables), (pruned, variables)]
        with serving(commands, Path(name)) as servers:
            requests = Requests((width, height), arguments.tokens)
            measurement = Measurement(servers, requests, [int(part) for part in arguments.concurrency.split(",")])
            measure(measurement, begun + 60 * arguments.minutes, written)
    title = f"{arguments.model}, keep {arguments.keep}, {measurement.rounds} rounds"
    Console(width=120).print(table(title, measurement.rows()))


if __name__ == "__main__":
    main()
