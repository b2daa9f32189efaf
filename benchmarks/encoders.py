"""Compare one vLLM server that prunes by the plugin with encoders that send their kept tokens to one without it.

    python -m benchmarks.encoders --json benchmarks/results/encoders.json -- --dtype float32 --enforce-eager \\
        --max-model-len 2048 --block-size 128
    python -m benchmarks.encoders --model llava-hf/llava-1.5-7b-hf --device cuda --concurrency 1,8,32,128 \\
        -- --max-model-len 4096 --gpu-memory-utilization 0.45

Run it in an environment with vLLM and tops-engine. ``tops serve`` with the plugin, ``vllm serve`` without it and
without its vision tower, and the encoders (``tops encode-server``) run on this machine and get the same requests in
turns: first distinct pictures, then a few pictures that are repeated with new questions. The time of a request begins
before its picture is encoded. ``small`` has random weights, and nothing is downloaded. On a machine whose cores are
shared by all processes, encoders take from the server what they save it; the gain that is looked for needs machines of
their own.
"""

import argparse
import asyncio
import base64
import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import aiohttp
import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import save_file

from benchmarks.machine import machine
from benchmarks.published_sizes import small_llava
from benchmarks.serving import NUM_REPEATED, Body, Reply, Requests, ask, summary
from benchmarks.shapes import build, write_files
from tests.integrations.vllm_tops.servers import STARTS_WITHIN, TOPS, VLLM, environment, free_port, serving
from tests.support.checkpoints import published_key
from tops_engine.mini import mini_path
from tops_engine.remote.encoder_client import EncoderClient
from tops_engine.remote.encoding import Served

SIDES = ("plugin", "encoders")

Ask = Callable[[aiohttp.ClientSession, Body], Coroutine[Any, Any, Reply]]


@contextmanager
def encoding(model: str, keep: str, number: int, options: Sequence[str], logs: Path) -> Iterator[list[str]]:
    """Start encoders, and give their addresses."""
    started, urls = [], []
    try:
        for index in range(number):
            port = free_port()
            command = [sys.executable, "-m", "tops_engine.cli", "encode-server", "--model", model, "--keep", keep]
            with (logs / f"encoder{index}.log").open("w") as log:
                command += ["--port", str(port), *options]
                started.append(subprocess.Popen(command, env=environment(), stdout=log, stderr=subprocess.STDOUT))
            urls.append(f"http://127.0.0.1:{port}")
        for index, url in enumerate(urls):
            _wait(url, started[index], logs / f"encoder{index}.log")
        yield urls
    finally:
        for process in started:
            process.terminate()
        for process in started:
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()


def _wait(url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    end = time.monotonic() + STARTS_WITHIN
    while time.monotonic() < end:
        if process.poll() is not None:
            raise RuntimeError(log.read_text())
        try:
            urllib.request.urlopen(f"{url}/v1/encoder").close()
        except OSError:
            time.sleep(0.5)
        else:
            return
    raise RuntimeError(log.read_text())


def asking_encoded(url: str, client: EncoderClient, pool: ThreadPoolExecutor) -> Ask:
    """Return a function that encodes the picture of a request and sends its kept tokens."""

    async def ask_encoded(session: aiohttp.ClientSession, body: Body) -> Reply:
        begun = perf_counter()
        encoded = await asyncio.get_running_loop().run_in_executor(pool, with_tokens, body, client)
        seconds = perf_counter() - begun
        reply = await ask(session, url, encoded)
        first, last = reply.first_token + seconds, reply.last_token + seconds
        return replace(reply, first_token=first, last_token=last)

    return ask_encoded


def with_tokens(body: Body, client: EncoderClient) -> Body:
    """Return a request whose picture is replaced by its kept tokens."""
    (message,) = body["messages"]
    picture, question = message["content"]
    data = base64.b64decode(picture["image_url"]["url"].partition(",")[2])
    part = {"type": "image_embeds", "image_embeds": client.encode(data, None).image_embeds}
    return body | {"messages": [message | {"content": [part, question]}]}


async def drive(ask_one: Ask, bodies: Sequence[Body], concurrency: int) -> tuple[float, list[Reply]]:
    """Send all requests, at most ``concurrency`` at once, and measure the time."""
    waiting = iter(bodies)
    replies: list[Reply] = []

    async def work(session: aiohttp.ClientSession) -> None:
        for body in waiting:
            replies.append(await ask_one(session, body))

    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(600)) as session:
        begun = perf_counter()
        await asyncio.gather(*(work(session) for _ in range(concurrency)))
        return perf_counter() - begun, replies


def compare(
    asks: Sequence[Ask], requests: Requests, concurrencies: Sequence[int], num_requests: int, rounds: int
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
                    seconds, answers = asyncio.run(drive(asks[side], bodies, concurrency))
                    if round_:
                        rates[side].append(number / seconds)
                        replies[side] += answers
            about = {"pictures": kind, "concurrency": concurrency}
            pair = [about | {"side": SIDES[side]} | summary(rates[side], replies[side]) for side in (0, 1)]
            pair[1]["rate_ratio"] = median(encoders / plugin for plugin, encoders in zip(*rates, strict=True))
            rows += pair
    return rows


def checkpoint(model: str, folder: Path) -> str:
    """Return what both sides load; write the random weights of ``small`` into ``folder``."""
    if model == "mini":
        return str(mini_path())
    if model != "small":
        return model
    family = build(small_llava(), "cpu", torch.float32)
    write_files(small_llava(), folder)
    family.model.save_pretrained(folder)
    # vLLM reads the names that files on the hub have, which transformers 5 no longer writes.
    weights = {published_key(name): value.clone() for name, value in family.model.state_dict().items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return str(folder)


def sizes(requests: Requests, client: EncoderClient) -> dict[str, int]:
    """Return the bytes of a request with a picture and of one with its kept tokens."""
    (body,) = requests.distinct(1)
    return {"plugin": len(json.dumps(body)), "encoders": len(json.dumps(with_tokens(body, client)))}


def table(title: str, rows: Sequence[dict[str, Any]]) -> Table:
    result = Table(title=title)
    for column in ("pictures", "at once", "side", "requests/s", "first token ms", "p99", "next token ms", "prompt"):
        result.add_column(column, justify="left" if column in ("pictures", "side") else "right")
    for row in rows:
        rate = f"{row['requests_a_second']:.1f}" + (f" ({row['rate_ratio']:.2f}x)" if "rate_ratio" in row else "")
        names = ("first_token_s", "first_token_p99_s", "next_token_s")
        times = [f"{1e3 * row[name]:.1f}" for name in names]
        prompt = f"{row['prompt_tokens']:.0f}"
        result.add_row(row["pictures"], str(row["concurrency"]), row["side"], rate, *times, prompt)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mini", help="mini, small, or a checkpoint")
    parser.add_argument("--keep", default="0.222")
    parser.add_argument("--encoders", type=int, default=2, help="number of encoders")
    parser.add_argument("--device", default="cpu", help="where the encoders run")
    parser.add_argument("--concurrency", default="1,8,32", help="numbers of requests at once, separated by commas")
    parser.add_argument("--requests", type=int, default=32, help="requests of a round; twice the concurrency if more")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=8, help="tokens of an answer")
    parser.add_argument("--size", default="336x336", help="width and height of the pictures")
    parser.add_argument("--json", type=Path, help="write the results here")
    parser.add_argument("options", nargs="*", help="options of vllm serve, after --")
    arguments = parser.parse_args()
    width, height = map(int, arguments.size.split("x"))
    concurrencies = [int(number) for number in arguments.concurrency.split(",")]

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = checkpoint(arguments.model, folder)
        options = [*arguments.options, "--served-model-name", "benchmark"]
        variables = environment(HF_HUB_OFFLINE=os.environ.get("HF_HUB_OFFLINE", "0"))
        alone = ["--enable-mm-embeds", "--limit-mm-per-prompt", '{"image": 0}']
        commands = [
            ([*TOPS, "serve", model, "--keep", arguments.keep, *options], variables),
            ([*VLLM, "serve", model, *options, *alone], variables | {"VLLM_PLUGINS": ""}),
        ]
        tower = ["--device", arguments.device]
        with (
            encoding(model, arguments.keep, arguments.encoders, tower, folder) as urls,
            serving(commands, folder) as (plugin, plain),
            ThreadPoolExecutor(max(concurrencies)) as pool,
        ):
            client = EncoderClient(urls)
            client.connect(Served("benchmark", None))
            requests = Requests((width, height), arguments.tokens)

            async def ask_plugin(session: aiohttp.ClientSession, body: Body) -> Reply:
                return await ask(session, plugin.url, body)

            asks = (ask_plugin, asking_encoded(plain.url, client, pool))
            bytes_sent = sizes(requests, client)
            rows = compare(asks, requests, concurrencies, arguments.requests, arguments.rounds)
    title = f"{arguments.model}, keep {arguments.keep}, {arguments.encoders} encoders and one server"
    Console(width=120).print(table(title, rows))
    Console(width=120).print(f"Bytes of a request: {bytes_sent}")
    if arguments.json:
        about = machine("cuda" if torch.cuda.is_available() else "cpu") | {
            "vllm": importlib.metadata.version("vllm"),
            "model": arguments.model,
            "keep": float(arguments.keep),
            "encoders": arguments.encoders,
            "tokens": arguments.tokens,
            "rounds": arguments.rounds,
            "options": arguments.options,
            "bytes_of_a_request": bytes_sent,
        }
        arguments.json.write_text(json.dumps(about | {"results": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
