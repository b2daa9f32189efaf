"""Two replicas of mini behind one address, by vLLM's data parallelism."""

import asyncio
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageOps

from tests.integrations.vllm_tops.servers import OPTIONS, TOPS, Server, as_url, asking, environment, serving
from tops_engine.engine import Engine
from tops_engine.messages import user_message
from tops_engine.mini import mini_path
from tops_engine.settings import Generation, ModelSpec, Pruning

pytestmark = pytest.mark.vllm

QUESTIONS = ["What number is written?", "Describe the picture.", "What colour is the circle?"]


def by_engine(server: Server, name: str) -> list[float]:
    """A metric of each replica."""
    lines = server.metric_lines(name)
    engines = sorted({match[1] for line in lines if (match := re.search(r'engine="(\d+)"', line))})
    return [sum(float(line.rsplit(" ", 1)[1]) for line in lines if f'engine="{engine}"' in line) for engine in engines]


async def test_both_replicas_answer_and_choose_alike(tmp_path: Path) -> None:
    from openai import AsyncOpenAI

    sample = Image.open(Path(mini_path()).with_name("sample.jpg")).convert("RGB")
    asked = [(image, question) for image in (sample, ImageOps.mirror(sample)) for question in QUESTIONS]
    engine = Engine.load(ModelSpec(model="mini", device="cpu"))
    pruning, generation = Pruning(keep=0.222, stages="first"), Generation(max_tokens=24)
    expected = [engine.chat([user_message(question, image)], pruning, generation) for image, question in asked]

    command = [*TOPS, "serve", "mini", "--keep", "0.222", "--data-parallel-size", "2", *OPTIONS]
    with serving([(command, environment())], tmp_path) as (server,):
        url = f"{server.url}/v1"
        async with AsyncOpenAI(base_url=url, api_key="none", timeout=300, max_retries=0) as client:
            requests: list[dict[str, Any]] = [asking(question, as_url(image)) for image, question in asked] * 10
            answers = await asyncio.gather(*(client.chat.completions.create(**request) for request in requests))
        for number, answer in enumerate(answers):
            meant = expected[number % len(asked)]
            assert answer.choices[0].message.content.strip() == meant.text.strip()
            assert answer.usage.completion_tokens == meant.usage.completion_tokens
        finished = by_engine(server, "vllm:request_success_total")
        assert sum(finished) == len(requests)
        assert len(finished) == 2
        assert min(finished) >= len(requests) / 4
