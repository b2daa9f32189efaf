"""Test two replicas of mini behind one address, by vLLM's data parallelism."""

import asyncio
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageOps

from tests.integrations.vllm_tops.servers import OPTIONS, TOPS, Server, as_url, asking, environment, free_port, serving
from tops_engine.answers.report import Answer
from tops_engine.conversation.messages import user_message
from tops_engine.engine import Engine
from tops_engine.mini import mini_path
from tops_engine.settings import Generation, ModelSpec, Pruning

pytestmark = pytest.mark.vllm

KEEP = "0.222"
SERVE = [*TOPS, "serve", "mini", "--keep", KEEP, "--data-parallel-size", "2"]
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
