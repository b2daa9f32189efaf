"""Test budgets per request with the openai client and mini."""

import asyncio
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.integrations.vllm_tops.servers import as_url, asking, running_in_group
from tests.integrations.vllm_tops.test_server import NUM_TOKENS, QUESTIONS, pictures
from tops_engine.conversation.messages import user_message
from tops_engine.engine import Engine
from tops_engine.mini import mini_path
from tops_engine.settings import Generation, ModelSpec, Pruning

__all__ = ["pictures"]

pytestmark = pytest.mark.vllm

TRUSTING = "--trust-request-mm-kwargs"


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Any]]:
    """Serve mini by `tops serve`, which keeps half or a request's smaller budget, and by vLLM without pruning."""
    from tests.integrations.vllm_tops.servers import OPTIONS, TOPS, VLLM, environment, serving

    half = [*TOPS, "serve", "mini", "--keep", "0.5", TRUSTING, *OPTIONS]
    plain = [*VLLM, "serve", str(mini_path()), "--served-model-name", "mini", *OPTIONS]
    with serving([(half, environment()), (plain, environment())], tmp_path_factory.mktemp("logs")) as started:
        yield started


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine.load(ModelSpec(model="mini", device="cpu"))


def keeping(keep: object, question: str, *images: Image.Image, **options: Any) -> dict[str, Any]:
    """Return a request with a budget; with ``keep=None`` it uses the server's budget."""
    own = {} if keep is None else {"extra_body": {"mm_processor_kwargs": {"tops_keep": keep}}}
    return asking(question, *map(as_url, images), **own, **options)


def expected(engine: Engine, keep: float, question: str, *images: Image.Image) -> str:
    pruning = Pruning(keep=keep, stages="first")
    return engine.chat([user_message(question, *images)], pruning, Generation(max_tokens=24)).text.strip()


@pytest.mark.parametrize(("keep", "num_kept"), [(None, 72), (0.5, 72), (0.222, 32), ("0.111", 16), (20, 20), (2, 2)])
@pytest.mark.parametrize("num_pictures", [1, 2])
def test_a_request_has_as_many_tokens_as_it_asks_for(
    servers: list[Any], pictures: list[Image.Image], keep: object, num_kept: int, num_pictures: int
) -> None:
    half, plain = (
        server.client.chat.completions.create(**keeping(own, QUESTIONS[0], *pictures[:num_pictures], max_tokens=1))
        for server, own in zip(servers, (keep, None), strict=True)
    )
    assert plain.usage.prompt_tokens - half.usage.prompt_tokens == num_pictures * (NUM_TOKENS - num_kept)


def test_each_picture_of_a_request_may_have_its_own_budget(
    servers: list[Any], pictures: list[Image.Image], engine: Engine
) -> None:
    first, second, third = pictures[:3]
    asked: list[tuple[list[Any], list[Image.Image], int]] = [
        ([0.5, 0.111], [first, second], 72 + 16),
        # vLLM knows the second picture with this budget, and the first with another one.
        ([0.222, 0.111], [first, second], 32 + 16),
        ([0.111, 0.222, 20], [second, third, first], 16 + 32 + 20),
        ([None, 0.222], [first, third], 72 + 32),
        ([0.222], [first], 32),
    ]
    for keeps, images, num_kept in asked:
        request = keeping(keeps, QUESTIONS[0], *images)
        answer = servers[0].client.chat.completions.create(**request)
        plain = servers[1].client.chat.completions.create(**keeping(None, QUESTIONS[0], *images, max_tokens=1))
        assert plain.usage.prompt_tokens - answer.usage.prompt_tokens == NUM_TOKENS * len(images) - num_kept
        message = user_message(QUESTIONS[0], *images, keep=keeps)
        expected = engine.chat([message], Pruning(keep=0.5, stages="first"), Generation(max_tokens=24))
        assert answer.choices[0].message.content.strip() == expected.text.strip()


async def test_requests_at_once_are_answered_each_by_its_own_budget(
    servers: list[Any], pictures: list[Image.Image], engine: Engine
) -> None:
    from openai import AsyncOpenAI

    asked: list[tuple[float | None, str, list[Image.Image]]] = [
        (keep, question, pictures[number : number + count])
        for count in (1, 2)
        for number, question in enumerate(QUESTIONS[:3])
        for keep in (None, 0.5, 0.222, 0.111, 8)
    ]
    async with AsyncOpenAI(base_url=f"{servers[0].url}/v1", api_key="none", timeout=300, max_retries=0) as client:
        answers = await asyncio.gather(
            *(client.chat.completions.create(**keeping(keep, question, *images)) for keep, question, images in asked)
        )
    for answer, (keep, question, images) in zip(answers, asked, strict=True):
        assert answer.choices[0].message.content.strip() == expected(engine, keep or 0.5, question, *images)


def test_streams_have_their_budget_too(servers: list[Any], pictures: list[Image.Image], engine: Engine) -> None:
    request = keeping(0.111, QUESTIONS[1], pictures[0], stream=True, stream_options={"include_usage": True})
    chunks = list(servers[0].client.chat.completions.create(**request))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text.strip() == expected(engine, 0.111, QUESTIONS[1], pictures[0])
    whole = servers[1].client.chat.completions.create(**keeping(None, QUESTIONS[1], pictures[0], max_tokens=1))
    assert whole.usage.prompt_tokens - chunks[-1].usage.prompt_tokens == NUM_TOKENS - 16


def test_budgets_do_not_share_what_is_kept_of_a_prompt(servers: list[Any], pictures: list[Image.Image]) -> None:
    server, new = servers[0], pictures[0].rotate(270)

    def new_hits(keep: object) -> float:
        before = server.metric("vllm:prefix_cache_hits_total")
        server.client.chat.completions.create(**keeping(keep, "Which shapes are there?", new, max_tokens=1))
        hits: float = server.metric("vllm:prefix_cache_hits_total") - before
        return hits

    assert new_hits(0.5) == 0
    assert new_hits(0.222) == 0
    assert new_hits(0.4) == 0
    assert new_hits(0.5) >= 64
    assert new_hits(0.222) >= 32
    # A request for the server's own budget gives the same answer as a request without one.
    assert new_hits(None) >= 64


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"tops_keep": 0.75}, "tops_keep=0.75 keeps 108 of a picture's 144 tokens, but the server has planned its"),
        ({"tops_keep": 100}, "its memory for 72 (TOPS_KEEP=0.5); ask for 0.5 or less."),
        ({"tops_keep": 0}, "keep=0 is not allowed: give a fraction above 0 and up to 1.0, or a whole number of"),
        ({"tops_keep": "much"}, "keep='much' is not allowed: give a fraction above 0 and up to 1.0, or a whole number"),
        ({"tops_keep": [0.2, 0.2]}, "tops_keep has 2 budgets for 1 pictures; give one for each, or one for all"),
        ({"tops_keep": ["much"]}, "keep='much' is not allowed: give a fraction above 0 and up to 1.0, or a whole"),
        ({"tops_keep": [0.75]}, "tops_keep=0.75 keeps 108 of a picture's 144 tokens, but the server has planned its"),
        ({"tops_keep": 0.001}, "keep=0.001 leaves less than one of 144 visual tokens"),
        ({"tops_method": "fastv"}, "A request may set tops_keep, not 'tops_method': this server prunes by tops"),
    ],
)
def test_a_wrong_budget_fails_its_request_alone(
    servers: list[Any], pictures: list[Image.Image], options: dict[str, Any], sentence: str
) -> None:
    from openai import BadRequestError

    client = servers[0].client
    request = keeping(None, QUESTIONS[0], pictures[0], extra_body={"mm_processor_kwargs": options})
    with pytest.raises(BadRequestError) as caught:
        client.chat.completions.create(**request)
    assert sentence in caught.value.message
    assert client.chat.completions.create(**keeping(0.2, QUESTIONS[0], pictures[0])).choices


def test_a_server_that_does_not_trust_its_clients_says_how_it_would(
    servers: list[Any], pictures: list[Image.Image]
) -> None:
    from openai import BadRequestError

    with pytest.raises(BadRequestError, match=TRUSTING):
        servers[1].client.chat.completions.create(**keeping(0.2, QUESTIONS[0], pictures[0]))


def test_a_server_that_prunes_on_request_alone_comes_back_the_same(
    servers: list[Any], pictures: list[Image.Image], engine: Engine, tmp_path: Path
) -> None:
    from tests.integrations.vllm_tops.servers import OPTIONS, TOPS, environment, free_port, serving

    command, port = [*TOPS, "serve", "mini", "--keep", "1.0", TRUSTING, *OPTIONS], free_port()
    requests = [keeping(None, question, image) for question in QUESTIONS for image in pictures[:2]]
    whole = [servers[1].client.chat.completions.create(**request) for request in requests]
    # The first server is killed while it answers, the second one is asked to stop, the third one runs to the end.
    for ending in (signal.SIGKILL, signal.SIGTERM, None):
        with serving([(command, environment())], tmp_path, port=port) as (server,):
            for request, unpruned in zip(requests, whole, strict=True):
                answer = server.client.chat.completions.create(**request)
                assert answer.choices[0].message.content == unpruned.choices[0].message.content
                assert answer.usage.prompt_tokens == unpruned.usage.prompt_tokens
            answer = server.client.chat.completions.create(**keeping(0.222, QUESTIONS[0], pictures[0]))
            assert answer.choices[0].message.content.strip() == expected(engine, 0.222, QUESTIONS[0], pictures[0])
            assert server.metric_lines("tops_pruning_info") == [
                'tops_pruning_info{keep="1.0",method="tops",stages="first"} 1.0'
            ]
            if ending is not None:
                endless = keeping(None, QUESTIONS[1], pictures[0], max_tokens=800, extra_body={"ignore_eos": True})
                stream = server.client.chat.completions.create(**endless, stream=True)
                next(iter(stream))
                server.process.send_signal(ending)
                server.process.wait(180)  # the answer that is being written ends first, on a busy machine late
                if ending == signal.SIGKILL:
                    wait_for_end(server.process.pid)


def wait_for_end(group: int) -> None:
    """Wait until the engine process of a killed server has ended by itself."""
    end = time.monotonic() + 60
    while left := running_in_group(group):
        assert time.monotonic() < end, left
        time.sleep(0.5)
