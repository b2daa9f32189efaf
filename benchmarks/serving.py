"""Measure a vLLM server at several budgets: requests a second, time to the first token and between tokens.

    python -m benchmarks.serving --model small --json benchmarks/results/serving-small.json -- \\
        --dtype float32 --enforce-eager --max-model-len 2048
    python -m benchmarks.serving --model llava-onevision-0.5b --size 384x384 --requests 16 --rounds 3 -- \\
        --dtype bfloat16 --max-model-len 4096
    python -m benchmarks.serving --model llava-next-7b --size 672x672 --keep none,1.0,0.222 --block-size 16 \\
        -- --max-model-len 4096 --gpu-memory-utilization 0.45

Run it in an environment with vLLM and tops-engine. One server answers at all budgets, which each request sets, so that
they take turns in the same process. ``none`` among the budgets is a second server without TOPS. First all pictures are
distinct, so that no cache has them; then a few pictures are repeated with new questions, as in a conversation. All
answers have the same length. Rates are medians over the rounds; times are over all requests. A published size by its
name (or ``small``, ``small-next``) has random weights; nothing is downloaded.

Each block size of the KV cache starts the server anew: a block that holds the end of a picture and a part of the
question is read again. vLLM's attention on a CPU takes multiples of 32 only. ``OMP_NUM_THREADS`` is the number of
threads of a server on a CPU, 1 by default. The results are written after each line, and the same command continues a
run that was stopped.
"""

import argparse
import asyncio
import base64
import importlib.metadata
import io
import itertools
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from statistics import median, quantiles
from time import perf_counter
from typing import Any

import aiohttp
import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from benchmarks.machine import machine
from benchmarks.published_sizes import SIZES, SMALL
from benchmarks.shapes import write_files
from tests.integrations.vllm_tops.servers import TOPS, VLLM, Server, environment, serving
from tops_engine.mini import mini_path

NUM_REPEATED = 4
Body = dict[str, Any]

#: The budget that stands for a server without TOPS.
NO_TOPS = "none"


@dataclass(frozen=True)
class Reply:
    """The times of its tokens, in seconds after the request was sent, and the length of the prompt."""

    first_token: float
    last_token: float
    prompt_tokens: int
    completion_tokens: int


class Requests:
    """Create requests with new pictures, which no cache has, and with repeated pictures."""

    def __init__(self, size: tuple[int, int], num_new: int) -> None:
        self._size, self._num_new = size, num_new
        self._numbers = count()
        self._repeated = [self._picture() for _ in range(NUM_REPEATED)]

    def distinct(self, number: int) -> list[Body]:
        return [self._body(self._picture(), "Describe the picture.") for _ in range(number)]

    def repeated(self, number: int) -> list[Body]:
        """Return questions about a few pictures; all questions differ."""
        return [
            self._body(self._repeated[index % NUM_REPEATED], f"What is at place {next(self._numbers)}?")
            for index in range(number)
        ]

    def _picture(self) -> str:
        """Return a picture of coloured clouds as a data URL."""
        pixels = np.random.default_rng(next(self._numbers)).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).resize(self._size).save(buffer, "JPEG")
        return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()

    def _body(self, picture: str, question: str) -> Body:
        content = [{"type": "image_url", "image_url": {"url": picture}}, {"type": "text", "text": question}]
        return {
            "model": "benchmark",
            "messages": [{"role": "user", "content": content}],
            "max_tokens": self._num_new,
            "ignore_eos": True,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }


async def ask(session: aiohttp.ClientSession, url: str, body: Body) -> Reply:
    """Send one request and read its stream to the end."""
    begun = perf_counter()
    times: list[float] = []
    usage: dict[str, int] = {}
    async with session.post(f"{url}/v1/chat/completions", json=body) as response:
        if response.status != 200:
            raise RuntimeError(await response.text())
        async for line in response.content:
            if line.startswith(b"data: {"):
                event = json.loads(line.removeprefix(b"data: "))
                usage = event.get("usage") or usage
                if event.get("choices"):
                    times.append(perf_counter() - begun)
    if usage.get("completion_tokens") != body["max_tokens"]:
        raise RuntimeError(f"The answer ended early, at {usage}.")
    return Reply(times[0], times[-1], usage["prompt_tokens"], usage["completion_tokens"])


async def drive(url: str, bodies: Iterable[Body], concurrency: int) -> tuple[float, list[Reply]]:
    """Send all requests, at most ``concurrency`` at once, and measure the time."""
    waiting = iter(bodies)
    replies: list[Reply] = []

    async def work(session: aiohttp.ClientSession) -> None:
        for body in waiting:
            replies.append(await ask(session, url, body))

    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(600)) as session:
        begun = perf_counter()
        await asyncio.gather(*(work(session) for _ in range(concurrency)))
        return perf_counter() - begun, replies


@dataclass(frozen=True)
class Side:
    """A server, and the budget that requests to it ask for: a fraction, or :data:`NO_TOPS`."""

    server: Server
    keep: str

    def body(self, body: Body) -> Body:
        return body if self.keep == NO_TOPS else body | {"mm_processor_kwargs": {"tops_keep": float(self.keep)}}


def compare(
    sides: Sequence[Side], make: Callable[[int], list[Body]], concurrency: int, num_requests: int, rounds: int
) -> list[dict[str, Any]]:
    """Return a row for each side; the sides run in turns, in another order each round, after a warm-up round."""
    number = max(num_requests, 2 * concurrency)
    rates: list[list[float]] = [[] for _ in sides]
    replies: list[list[Reply]] = [[] for _ in sides]
    for round_ in range(rounds + 1):
        bodies = make(number if round_ else min(number, 2 * NUM_REPEATED))
        turns = range(len(sides))
        for turn in turns if round_ % 2 else reversed(turns):
            side = sides[turn]
            seconds, answers = asyncio.run(drive(side.server.url, map(side.body, bodies), concurrency))
            if round_:
                rates[turn].append(number / seconds)
                replies[turn] += answers
    rows: list[dict[str, Any]] = []
    for side, own, answered in zip(sides, rates, replies, strict=True):
        row = {"keep": side.keep} | summary(own, answered)
        row["rate_ratio"] = median(rate / first for rate, first in zip(own, rates[0], strict=True))
        row["first_token_ratio"] = row["first_token_s"] / (rows[0] if rows else row)["first_token_s"]
        rows.append(row)
    return rows


def summary(rates: Sequence[float], replies: Sequence[Reply]) -> dict[str, Any]:
    first = [reply.first_token for reply in replies]
    return {
        "requests_a_second": median(rates),
        "first_token_s": median(first),
        "first_token_p99_s": quantiles(first, n=100)[-1],
        "next_token_s": median(
            (reply.last_token - reply.first_token) / (reply.completion_tokens - 1) for reply in replies
        ),
        "prompt_tokens": median(reply.prompt_tokens for reply in replies),
    }


def source(model: str, folder: Path) -> tuple[str, list[str]]:
    """Return the model for vLLM and its options; write the files of a published size into ``folder``."""
    if model == "mini":
        return str(mini_path()), []
    if model not in SIZES and model not in SMALL:
        return model, []
    published = SIZES[model] if model in SIZES else SMALL[model]()
    number = write_files(published, folder).convert_tokens_to_ids
    image_token = number(published.tokens.get("image_token", published.placeholder))
    config = published.config | {
        "architectures": [MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES[published.config["model_type"]]],
        **{f"{name}_id": number(token) for name, token in published.tokens.items()},
        "image_token_id": image_token,
        "image_token_index": image_token,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder), ["--load-format", "dummy"]


class Results:
    """The rows of a run, written after each addition; a file of the same run is continued."""

    def __init__(self, path: Path | None, about: dict[str, Any]) -> None:
        self.path, self.about = path, about
        self.rows: list[dict[str, Any]] = []
        if path is not None and path.exists():
            stored = json.loads(path.read_text())
            if all(stored.get(name) == value for name, value in about.items()):
                self.rows = stored["results"]

    def has(self, point: dict[str, Any]) -> bool:
        return any(point.items() <= row.items() for row in self.rows)

    def add(self, rows: Sequence[dict[str, Any]]) -> None:
        self.rows += rows
        if self.path is not None:
            whole = machine("cuda" if torch.cuda.is_available() else "cpu") | self.about | {"results": self.rows}
            self.path.write_text(json.dumps(whole, indent=2) + "\n")


def table(title: str, rows: Sequence[dict[str, Any]]) -> Table:
    result = Table(title=title)
    for column in ("block", "pictures", "at once", "keep", "requests/s", "first token ms", "p99", "next ms", "prompt"):
        result.add_column(column, justify="left" if column == "pictures" else "right")
    for row in rows:
        result.add_row(
            *(str(row[name]) for name in ("block_size", "pictures", "concurrency", "keep")),
            f"{row['requests_a_second']:.2f} ({row['rate_ratio']:.2f}x)",
            f"{1e3 * row['first_token_s']:.0f} ({row['first_token_ratio']:.2f}x)",
            *(f"{1e3 * row[name]:.0f}" for name in ("first_token_p99_s", "next_token_s")),
            f"{row['prompt_tokens']:.0f}",
        )
    return result


def measure(arguments: argparse.Namespace, results: Results) -> None:
    """Measure all points that the results do not have yet."""
    keeps = arguments.keep.split(",")
    width, height = map(int, arguments.size.split("x"))
    points = list(itertools.product(("distinct", "repeated"), map(int, arguments.concurrency.split(","))))
    with tempfile.TemporaryDirectory() as name:
        model, needed = source(arguments.model, Path(name))
        for block_size in map(int, arguments.block_size.split(",")):
            left = [point for point in points if not results.has(about(block_size, *point))]
            if not left:
                continue
            options = [*needed, *arguments.options, "--block-size", str(block_size), "--served-model-name", "benchmark"]
            with serving(commands(model, keeps, options), Path(name)) as servers:
                sides = [Side(servers[-1 if keep == NO_TOPS else 0], keep) for keep in keeps]
                requests = Requests((width, height), arguments.tokens)
                for kind, concurrency in left:
                    make = requests.distinct if kind == "distinct" else requests.repeated
                    rows = compare(sides, make, concurrency, arguments.requests, arguments.rounds)
                    results.add([about(block_size, kind, concurrency) | row for row in rows])
                    Console(width=120).print(table(arguments.model, results.rows[-len(rows) :]))


def about(block_size: int, kind: str, concurrency: int) -> dict[str, Any]:
    """Return what a row says of its point."""
    return {"block_size": block_size, "pictures": kind, "concurrency": concurrency}


def commands(model: str, keeps: Sequence[str], options: Sequence[str]) -> list[tuple[list[str], dict[str, str]]]:
    """Return the commands of the server that prunes on request, and of one without TOPS if it is asked for."""
    inherited = {"HF_HUB_OFFLINE": "0", "OMP_NUM_THREADS": "1"}
    variables = environment(**{name: os.environ.get(name, default) for name, default in inherited.items()})
    most = max((float(keep) for keep in keeps if keep != NO_TOPS), default=None)
    pruned = [*TOPS, "serve", model, "--keep", str(most), "--trust-request-mm-kwargs", *options]
    plain = [*VLLM, "serve", model, *options]
    asked = [pruned] * (most is not None) + [plain] * (NO_TOPS in keeps)
    return [(command, variables) for command in asked]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = ", ".join(["mini", *SMALL, *SIZES])
    parser.add_argument("--model", default="mini", help=f"{names}, or a checkpoint")
    parser.add_argument("--keep", default="1.0,0.5,0.222,0.111", help="budgets; ratios are to the first")
    parser.add_argument("--block-size", default="32,128", help="sizes of the KV cache's blocks, in tokens")
    parser.add_argument("--concurrency", default="1,8,32", help="numbers of requests at once")
    parser.add_argument("--requests", type=int, default=32, help="requests of a round; twice the concurrency if more")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=8, help="tokens of an answer")
    parser.add_argument("--size", default="336x336", help="width and height of the pictures")
    parser.add_argument("--json", type=Path, help="write the results here")
    parser.add_argument("options", nargs="*", help="options of vllm serve, after --")
    arguments = parser.parse_args()
    version = {"vllm": importlib.metadata.version("vllm")}
    named = ("model", "keep", "size", "requests", "tokens", "rounds", "options")
    results = Results(arguments.json, version | {name: getattr(arguments, name) for name in named})
    measure(arguments, results)
    Console(width=120).print(table(arguments.model, results.rows))


if __name__ == "__main__":
    main()
