"""Compare vLLM with and without pruning: requests a second, time to the first token and between tokens.

    python -m benchmarks.serving --json benchmarks/results/serving.json -- --dtype float32 --enforce-eager \\
        --max-model-len 2048 --block-size 32
    python -m benchmarks.serving --model llava-next-7b --size 672x672 --concurrency 1,8,32,128 \\
        -- --max-model-len 4096 --gpu-memory-utilization 0.45
    python -m benchmarks.serving --model llava-hf/llava-v1.6-vicuna-7b-hf -- --load-format dummy ...

Run it in an environment with vLLM and tops-engine. Both servers are started with the same options (those after ``--``)
and get the same requests in turns. First all pictures are distinct, so that no cache has them; then a few pictures are
repeated with new questions, as in a conversation. All answers have the same length. Rates are medians over the rounds;
times are over all requests. A published size by its name (or ``small``) has random weights; nothing is
downloaded. On a CPU, vLLM's blocks have 128 tokens by default; if a block holds the end of a picture and a part of the
question, the caches do not cover the whole picture.
"""

import argparse
import asyncio
import base64
import importlib.metadata
import io
import json
import os
import tempfile
from collections.abc import Iterable, Sequence
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
from benchmarks.published_sizes import SIZES, small_llava
from benchmarks.shapes import write_files
from tests.integrations.vllm_tops.servers import TOPS, VLLM, Server, environment, serving
from tops_engine.mini import mini_path

SIDES = ("unpruned", "pruned")
NUM_REPEATED = 4
Body = dict[str, Any]


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


def compare(
    servers: Sequence[Server], requests: Requests, concurrencies: Sequence[int], num_requests: int, rounds: int
) -> list[dict[str, Any]]:
    """Return a row for each kind of requests, concurrency and side; the sides run in turns after a warm-up round."""
    rows = []
    for kind in ("distinct", "repeated"):
        make = getattr(requests, kind)
        for concurrency in concurrencies:
            number = max(num_requests, 2 * concurrency)
            rates: list[list[float]] = [[], []]
            replies: list[list[Reply]] = [[], []]
            for round_ in range(rounds + 1):
                bodies = make(number if round_ else min(number, 2 * NUM_REPEATED))
                for side in (0, 1) if round_ % 2 else (1, 0):
                    seconds, answers = asyncio.run(drive(servers[side].url, bodies, concurrency))
                    if round_:
                        rates[side].append(number / seconds)
                        replies[side] += answers
            faster = median(pruned / unpruned for unpruned, pruned in zip(*rates, strict=True))
            about = {"pictures": kind, "concurrency": concurrency}
            pair = [about | {"side": SIDES[side]} | summary(rates[side], replies[side]) for side in (0, 1)]
            pair[1]["rate_ratio"] = faster
            for name in ("first_token_s", "first_token_p95_s", "next_token_s"):
                pair[1][name.replace("_s", "_ratio")] = pair[1][name] / pair[0][name]
            rows += pair
    return rows


def summary(rates: Sequence[float], replies: Sequence[Reply]) -> dict[str, Any]:
    first = [reply.first_token for reply in replies]
    return {
        "requests_a_second": median(rates),
        "first_token_s": median(first),
        "first_token_p95_s": quantiles(first, n=20)[-1],
        "next_token_s": median(
            (reply.last_token - reply.first_token) / (reply.completion_tokens - 1) for reply in replies
        ),
        "prompt_tokens": median(reply.prompt_tokens for reply in replies),
    }


def source(model: str, folder: Path) -> tuple[str, list[str]]:
    """Return the model for vLLM and its options; write the files of a published size into ``folder``."""
    if model == "mini":
        return str(mini_path()), []
    if model not in SIZES and model != "small":
        return model, []
    published = SIZES[model] if model in SIZES else small_llava()
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


def table(title: str, rows: Sequence[dict[str, Any]]) -> Table:
    result = Table(title=title)
    for column in ("pictures", "at once", "side", "requests/s", "first token ms", "p95", "next token ms", "prompt"):
        result.add_column(column, justify="left" if column in ("pictures", "side") else "right")
    for row in rows:
        rate, *times = (
            f"{scale * row[name]:.1f}" + (f" ({row[ratio]:.2f}x)" if ratio in row else "")
            for name, ratio, scale in (
                ("requests_a_second", "rate_ratio", 1),
                ("first_token_s", "first_token_ratio", 1e3),
                ("first_token_p95_s", "first_token_p95_ratio", 1e3),
                ("next_token_s", "next_token_ratio", 1e3),
            )
        )
        prompt = f"{row['prompt_tokens']:.0f}"
        result.add_row(row["pictures"], str(row["concurrency"]), row["side"], rate, *times, prompt)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mini", help=f"mini, small, one of {', '.join(SIZES)}, or a checkpoint")
    parser.add_argument("--keep", default="0.222")
    parser.add_argument("--concurrency", default="1,8,32", help="numbers of requests at once, separated by commas")
    parser.add_argument("--requests", type=int, default=32, help="requests of a round; twice the concurrency if more")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=8, help="tokens of an answer")
    parser.add_argument("--size", default="336x336", help="width and height of the pictures")
    parser.add_argument("--json", type=Path, help="write the results here")
    parser.add_argument("options", nargs="*", help="options of vllm serve, after --")
    arguments = parser.parse_args()
    width, height = map(int, arguments.size.split("x"))

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model, needed = source(arguments.model, folder)
        options = [*needed, *arguments.options, "--served-model-name", "benchmark"]
        commands = [
            [*VLLM, "serve", model, *options],
            [*TOPS, "serve", model, "--keep", arguments.keep, *options],
        ]
        variables = environment(HF_HUB_OFFLINE=os.environ.get("HF_HUB_OFFLINE", "0"))
        with serving([(command, variables) for command in commands], folder) as servers:
            rows = compare(
                servers,
                Requests((width, height), arguments.tokens),
                [int(number) for number in arguments.concurrency.split(",")],
                arguments.requests,
                arguments.rounds,
            )
    Console(width=120).print(table(f"{arguments.model}, keep {arguments.keep}", rows))
    if arguments.json:
        about = machine("cuda" if torch.cuda.is_available() else "cpu") | {
            "vllm": importlib.metadata.version("vllm"),
            "model": arguments.model,
            "keep": float(arguments.keep),
            "tokens": arguments.tokens,
            "rounds": arguments.rounds,
            "options": arguments.options,
        }
        arguments.json.write_text(json.dumps(about | {"results": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
