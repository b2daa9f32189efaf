"""Test `tops serve` and `vllm serve` as processes, with the openai client and mini."""

import asyncio
import base64
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageOps

from tests.conftest import Picture
from tests.integrations.vllm_tops.servers import as_url, asking
from tests.support.checkpoints import save_llava
from tops_engine.conversation.messages import user_message
from tops_engine.engine import Engine
from tops_engine.mini import mini_path
from tops_engine.settings import Generation, ModelSpec, Pruning

pytestmark = pytest.mark.vllm

KEEP, NUM_TOKENS, NUM_KEPT = "0.222", 144, 32
QUESTIONS = ["What number is written?", "Describe the picture.", "What colour is the circle?", "What word is there?"]


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Any]]:
    """Serve mini pruned by `tops serve`, and unpruned by `vllm serve` with the plugin installed."""
    from tests.integrations.vllm_tops.servers import OPTIONS, TOPS, VLLM, environment, serving

    pruned = [*TOPS, "serve", "mini", "--keep", KEEP, *OPTIONS]
    plain = [*VLLM, "serve", str(mini_path()), "--served-model-name", "mini", *OPTIONS]
    with serving([(pruned, environment()), (plain, environment())], tmp_path_factory.mktemp("logs")) as started:
        yield started


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    """Return the sample and its mirror images."""
    sample = Image.open(Path(mini_path()).with_name("sample.jpg")).convert("RGB")
    return [sample, ImageOps.mirror(sample), ImageOps.flip(sample), sample.rotate(90)]


@pytest.mark.parametrize("num_pictures", [0, 1, 2, 3])
def test_prompts_hold_the_kept_tokens_only(servers: list[Any], pictures: list[Image.Image], num_pictures: int) -> None:
    request = asking("What is shown?", *map(as_url, pictures[:num_pictures]), max_tokens=1)
    pruned, plain = (server.client.chat.completions.create(**request).usage.prompt_tokens for server in servers)
    assert plain - pruned == num_pictures * (NUM_TOKENS - NUM_KEPT)


def test_metrics_say_what_is_pruned(servers: list[Any]) -> None:
    pruned, plain = (server.metric_lines("tops_pruning_info") for server in servers)
    assert pruned == [f'tops_pruning_info{{keep="{KEEP}",method="tops",stages="first"}} 1.0']
    assert plain == []


def test_processes_that_share_their_metrics_say_it_once(tmp_path: Path) -> None:
    from prometheus_client import CollectorRegistry, generate_latest
    from prometheus_client.multiprocess import MultiProcessCollector

    from tests.integrations.vllm_tops.servers import environment

    # `vllm serve --api-server-count 2` starts them in this way.
    shared = environment(PROMETHEUS_MULTIPROC_DIR=str(tmp_path), TOPS_KEEP="64", TOPS_METHOD="divprune")
    for _ in range(2):
        subprocess.run([sys.executable, "-c", "import vllm_tops; vllm_tops.register()"], env=shared, check=True)
    registry = CollectorRegistry()
    MultiProcessCollector(registry, str(tmp_path))
    shown = generate_latest(registry).decode()
    assert 'tops_pruning_info{keep="64",method="divprune"} 1.0' in shown.splitlines()
    assert shown.count("tops_pruning_info{") == 1


def test_answers_are_those_of_the_engine_with_the_first_stage_alone(
    servers: list[Any], pictures: list[Image.Image]
) -> None:
    engine = Engine.load(ModelSpec(model="mini", device="cpu"))
    for server, pruning in zip(servers, (Pruning(keep=float(KEEP), stages="first"), Pruning(keep=1.0)), strict=True):
        for image in pictures:
            for question in QUESTIONS:
                answer = engine.chat([user_message(question, image)], pruning, Generation(max_tokens=24))
                served = server.client.chat.completions.create(**asking(question, as_url(image)))
                assert served.choices[0].message.content.strip() == answer.text.strip()
                assert served.usage.completion_tokens == answer.usage.completion_tokens


def test_a_prompt_seen_before_is_not_read_again(servers: list[Any], pictures: list[Image.Image]) -> None:
    request = asking("Is there a circle in this picture, and what colour is it?", as_url(pictures[3]))
    server = servers[0]
    first = server.client.chat.completions.create(**request)
    hits = server.metric("vllm:prefix_cache_hits_total")
    second = server.client.chat.completions.create(**request)
    assert second.choices[0].message.content == first.choices[0].message.content
    assert server.metric("vllm:prefix_cache_hits_total") - hits >= NUM_KEPT


async def test_two_hundred_requests_at_once(servers: list[Any], pictures: list[Image.Image]) -> None:
    from openai import AsyncOpenAI

    urls = [as_url(image.resize((120 + 4 * number, 120))) for number in range(10) for image in pictures]
    requests = [asking(QUESTIONS[number % 4], urls[number % len(urls)], max_tokens=8) for number in range(200)]
    alone = [servers[0].client.chat.completions.create(**request) for request in requests[:8]]
    async with AsyncOpenAI(base_url=f"{servers[0].url}/v1", api_key="none", timeout=300, max_retries=0) as client:
        answers = await asyncio.gather(*(client.chat.completions.create(**request) for request in requests))
    assert all(answer.choices[0].message.content for answer in answers)
    for answer, expected in zip(answers, alone, strict=False):
        assert answer.choices[0].message.content == expected.choices[0].message.content


def test_streams_say_the_same(servers: list[Any], pictures: list[Image.Image]) -> None:
    request = asking("Describe the picture.", as_url(pictures[0]))
    client = servers[0].client
    whole = client.chat.completions.create(**request).choices[0].message.content
    pieces = [chunk.choices[0].delta.content or "" for chunk in client.chat.completions.create(**request, stream=True)]
    # vLLM joins what a client has not read yet.
    assert len(pieces) > 1
    assert "".join(pieces) == whole


def test_a_client_that_hangs_up_leaves_nothing_behind(servers: list[Any], pictures: list[Image.Image]) -> None:
    server = servers[0]
    endless = asking("Describe the picture.", as_url(pictures[0]), max_tokens=900, extra_body={"ignore_eos": True})
    stream = server.client.chat.completions.create(**endless, stream=True)
    next(iter(stream))
    stream.close()
    end = time.monotonic() + 60
    while server.metric("vllm:num_requests_running") and time.monotonic() < end:
        time.sleep(0.2)
    assert server.metric("vllm:num_requests_running") == 0
    assert server.client.chat.completions.create(**asking("What number is written?", as_url(pictures[0]))).choices


async def test_a_bad_picture_fails_alone(servers: list[Any], pictures: list[Image.Image]) -> None:
    from openai import APIStatusError, AsyncOpenAI

    good = as_url(pictures[0])
    bad = "data:image/png;base64," + base64.b64encode(b"no picture").decode()
    cut = good[: len(good) // 8 * 4]
    async with AsyncOpenAI(base_url=f"{servers[0].url}/v1", api_key="none", timeout=120, max_retries=0) as client:
        answers = await asyncio.gather(
            *(
                client.chat.completions.create(**asking("What number is written?", url))
                for url in (good, bad, cut, good)
            ),
            return_exceptions=True,
        )
    for answer in (answers[1], answers[2]):
        assert isinstance(answer, APIStatusError)
        assert 400 <= answer.status_code < 500
    assert answers[0].choices[0].message.content == answers[3].choices[0].message.content == " 5"  # type: ignore[union-attr]


def test_ranks_that_share_the_heads_choose_the_same_tokens(tmp_path: Path, picture: Picture) -> None:
    from tests.integrations.vllm_tops.servers import OPTIONS, TOPS, environment, serving

    # The vision tower has two heads, one for each rank.
    folder = str(save_llava(tmp_path / "llava", num_attention_heads=2, num_key_value_heads=2))
    engine = Engine.load(ModelSpec(model=folder, device="cpu"))
    command = [*TOPS, "serve", folder, "--keep", "0.5", "-tp", "2", "--served-model-name", "mini", *OPTIONS]
    command += ["--trust-request-mm-kwargs"]
    with serving([(command, environment())], tmp_path) as (server,):
        for seed, keep in enumerate((0.5, 0.3, 4, 0.5)):
            image = picture(80, 60, seed)
            answer = engine.chat(
                [user_message("What is it?", image)], Pruning(keep=keep, stages="first"), Generation(max_tokens=12)
            )
            own = {"mm_processor_kwargs": {"tops_keep": keep}}
            served = server.client.chat.completions.create(
                **asking("What is it?", as_url(image), max_tokens=12, extra_body=own)
            )
            # If an answer ends within a character, only one of the two shows the replacement character.
            assert served.choices[0].message.content.rstrip("\ufffd") == answer.text.rstrip("\ufffd")


@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        ({"TOPS_KEEP": "3.0"}, "TOPS: keep='3.0' is not allowed: give a fraction above 0 and up to 1.0"),
        ({"TOPS_KEEP": "0.2", "TOPS_METHOD": "fastv"}, "TOPS: Method 'fastv' prunes inside the language model"),
    ],
)
def test_what_cannot_be_pruned_ends_the_start_with_one_sentence(variables: dict[str, str], sentence: str) -> None:
    from tests.integrations.vllm_tops.servers import VLLM, environment, refusal

    assert refusal([*VLLM, "serve", str(mini_path())], environment(**variables)).startswith(sentence)


@pytest.mark.parametrize(("keep", "sentence"), [("7.0", "keep='7.0' is not allowed"), ("0", "keep='0' is not allowed")])
def test_a_wrong_budget_ends_the_command_with_one_sentence(keep: str, sentence: str) -> None:
    from tests.integrations.vllm_tops.servers import TOPS, environment, refusal

    line = refusal([*TOPS, "serve", "mini", "--keep", keep], environment())
    assert line.startswith("Error: ")
    assert sentence in line


def test_another_model_is_refused_at_the_start(tmp_path: Path) -> None:
    from tests.integrations.vllm_tops.servers import TOPS, VLLM, environment, refusal
    from tests.support.checkpoints_video import save_next_video

    folder = str(save_next_video(tmp_path / "video"))
    sentence = "LlavaNextVideoForConditionalGeneration cannot be pruned in vLLM yet; these can: LlavaForCondit"
    assert refusal([*VLLM, "serve", folder], environment(TOPS_KEEP="0.2")).startswith(f"TOPS: {sentence}")
    assert refusal([*TOPS, "serve", folder, "--keep", "0.2"], environment()).startswith(f"Error: {sentence}")
