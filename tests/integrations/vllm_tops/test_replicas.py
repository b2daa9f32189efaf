"""Test two replicas of mini behind one address: by vLLM's data parallelism, and by a reverse proxy."""

import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image, ImageOps

from tests.integrations.vllm_tops.servers import OPTIONS, TOPS, Server, as_url, asking, environment, free_port, serving
from tops_engine.answers.report import Answer
from tops_engine.captioning.prompts import PROMPTS
from tops_engine.conversation.messages import user_message
from tops_engine.engine import Engine
from tops_engine.mini import mini_path
from tops_engine.settings import Generation, ModelSpec, Pruning

pytestmark = pytest.mark.vllm

KEEP = "0.222"
ALONE = [*TOPS, "serve", "mini", "--keep", KEEP]
SERVE = [*ALONE, "--data-parallel-size", "2"]
EXAMPLES = Path(__file__).parents[3] / "docs" / "examples" / "serving"
QUESTIONS = ["What number is written?", "Describe the picture.", "What colour is the circle?"]


def by_engine(server: Server, name: str) -> list[float]:
    """Return a metric of each replica."""
    lines = server.metric_lines(name)
    engines = sorted({match[1] for line in lines if (match := re.search(r'engine="(\d+)"', line))})
    return [sum(float(line.rsplit(" ", 1)[1]) for line in lines if f'engine="{engine}"' in line) for engine in engines]


@pytest.fixture(scope="module")
def asked() -> list[tuple[Image.Image, str]]:
    sample = Image.open(Path(mini_path()).with_name("sample.jpg")).convert("RGB")
    return [(image, question) for image in (sample, ImageOps.mirror(sample)) for question in QUESTIONS]


@pytest.fixture(scope="module")
def expected(asked: list[tuple[Image.Image, str]]) -> list[Answer]:
    """Return the engine's answer with the first stage alone."""
    engine = Engine.load(ModelSpec(model="mini", device="cpu"))
    pruning, generation = Pruning(keep=float(KEEP), stages="first"), Generation(max_tokens=24)
    return [engine.chat([user_message(question, image)], pruning, generation) for image, question in asked]


async def check(server: Server, asked: list[tuple[Image.Image, str]], expected: list[Answer]) -> None:
    """Check that both replicas answer requests, with the engine's answers."""
    from openai import AsyncOpenAI

    requests: list[dict[str, Any]] = [asking(question, as_url(image)) for image, question in asked] * 10
    url = f"{server.url}/v1"
    async with AsyncOpenAI(base_url=url, api_key="none", timeout=300, max_retries=0) as client:
        answers = await asyncio.gather(*(client.chat.completions.create(**request) for request in requests))
    for number, answer in enumerate(answers):
        meant = expected[number % len(asked)]
        assert answer.choices[0].message.content.strip() == meant.text.strip()
        assert answer.usage.completion_tokens == meant.usage.completion_tokens
    finished = by_engine(server, "vllm:request_success_total")
    assert sum(finished) == len(requests)
    assert len(finished) == 2
    assert min(finished) >= len(requests) / 4


async def test_replicas_of_one_command(
    tmp_path: Path, asked: list[tuple[Image.Image, str]], expected: list[Answer]
) -> None:
    with serving([([*SERVE, *OPTIONS], environment())], tmp_path) as (server,):
        await check(server, asked, expected)


async def test_replicas_of_two_commands_as_on_two_machines(
    tmp_path: Path, asked: list[tuple[Image.Image, str]], expected: list[Answer]
) -> None:
    here = ["--data-parallel-size-local", "1", "--data-parallel-address", "127.0.0.1"]
    command = [*SERVE, *here, "--data-parallel-rpc-port", str(free_port()), *OPTIONS]
    with (tmp_path / "second.log").open("w") as log:
        second = subprocess.Popen(
            [*command, "--headless", "--data-parallel-start-rank", "1"], env=environment(), stdout=log, stderr=log
        )
    try:
        with serving([(command, environment())], tmp_path) as (server,):
            await check(server, asked, expected)
    finally:
        second.terminate()
        second.wait(60)


#: The command line of a proxy, by its configuration in the examples.
PROXIES = {"nginx.conf": ["nginx", "-p", ".", "-c", "nginx.conf"], "Caddyfile": ["caddy", "run"]}


@pytest.mark.parametrize("configuration", list(PROXIES))
def test_a_run_behind_a_proxy_outlives_a_killed_server(tmp_path: Path, configuration: str) -> None:
    if shutil.which(PROXIES[configuration][0]) is None:
        pytest.skip(f"{PROXIES[configuration][0]} is not installed")
    command = ([*ALONE, *OPTIONS], environment())
    address, *ports = free_port(), free_port(), free_port()
    # 20 captions a second and more: the run must last until the server is up again.
    with ExitStack() as stack, captioning(tmp_path, 4000, address) as captions:
        (first,), (second,) = [stack.enter_context(serving([command], tmp_path, port)) for port in ports]
        stack.enter_context(proxy(tmp_path, configuration, address, ports))
        captions.start()
        captions.wait_for(500)
        os.killpg(second.process.pid, signal.SIGKILL)
        (again,) = stack.enter_context(serving([command], tmp_path, ports[1]))
        captions.finish()
        assert first.metric("vllm:request_success_total") > 500
        assert again.metric("vllm:request_success_total") > 100


def test_a_run_outlives_a_killed_replica_of_one_server(tmp_path: Path) -> None:
    command = ([*SERVE, *OPTIONS], environment())
    address = free_port()
    with captioning(tmp_path, 600, address) as captions:
        with serving([command], tmp_path, address) as (server,):
            captions.start()
            captions.wait_for(200)
            engines = psutil.Process(server.process.pid).children(recursive=True)
            (replica,) = [engine for engine in engines if "EngineCore_DP1" in " ".join(engine.cmdline())]
            replica.kill()
            # The server cannot go on with one of its replicas, and ends.
            server.process.wait(120)
        with serving([command], tmp_path, address) as (server,):
            captions.finish()
            assert min(by_engine(server, "vllm:request_success_total")) > 50


class Captions:
    """A run of `tops caption` on small pictures that all differ."""

    def __init__(self, folder: Path, number: int, port: int) -> None:
        self.pictures, self.lines, self.number = folder / "pictures", folder / "captions.jsonl", number
        self.pictures.mkdir()
        for seed in range(number):
            pixels = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
            Image.fromarray(pixels).resize((48, 48)).save(self.pictures / f"{seed:04}.png")
        options = ["--server", f"http://127.0.0.1:{port}", "--concurrency", "32", "--max-tokens", "24"]
        self.command = [sys.executable, "-m", "tops_engine.cli", "caption", str(self.pictures), *options]
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.process = subprocess.Popen([*self.command, "-o", str(self.lines)])

    def wait_for(self, number: int) -> None:
        """Wait until a number of pictures have captions."""
        assert self.process is not None
        end = time.monotonic() + 900
        while not self.lines.exists() or self.lines.read_bytes().count(b"\n") <= number:
            assert self.process.poll() is None
            assert time.monotonic() < end
            time.sleep(0.1)

    def finish(self) -> None:
        """Wait for the end, and check that no caption is missing, twice or another than the engine's."""
        assert self.process is not None
        assert self.process.wait(1500) == 0
        _, *lines = [json.loads(line) for line in self.lines.read_text().splitlines()]
        assert [line["picture"] for line in lines] == sorted(path.name for path in self.pictures.iterdir())
        assert all("error" not in line for line in lines)
        engine = Engine.load(ModelSpec(model="mini", device="cpu"))
        pruning, generation = Pruning(keep=float(KEEP), stages="first"), Generation(max_tokens=24)
        for line in lines[:: self.number // 20]:
            question = [user_message(PROMPTS["caption"], self.pictures / line["picture"])]
            assert line["caption"] == " ".join(engine.chat(question, pruning, generation).text.split())


@contextmanager
def captioning(folder: Path, number: int, port: int) -> Iterator[Captions]:
    """Prepare a run, and end it if the test fails."""
    captions = Captions(folder, number, port)
    try:
        yield captions
    finally:
        if captions.process is not None:
            captions.process.kill()
            captions.process.wait()


@contextmanager
def proxy(folder: Path, configuration: str, address: int, ports: list[int]) -> Iterator[None]:
    """Run a proxy by the configuration of the examples, with other ports and no folders outside of the test's."""
    text = (EXAMPLES / configuration).read_text()
    for documented, port in zip((8000, 8001, 8002), (address, *ports), strict=True):
        text = text.replace(f":{documented}", f":{port}")
    names = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    paths = "".join(f"    {name}_temp_path {name};\n" for name in names)
    (folder / configuration).write_text(text.replace("http {\n", "http {\n" + paths))
    with (folder / "proxy.log").open("w") as log:
        process = subprocess.Popen(PROXIES[configuration], cwd=folder, stdout=log, stderr=log)
    try:
        yield
    finally:
        process.terminate()
        process.wait(30)
