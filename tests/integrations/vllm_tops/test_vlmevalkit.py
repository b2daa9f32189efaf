"""Test a server of `tops serve` with the requests of VLMEvalKit (`run.py --base-url`, its class LMDeployAPI)."""

import io
import json
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Iterator
from typing import Any

import pytest
from PIL import Image

from tests.integrations.vllm_tops.servers import Server
from tests.integrations.vllm_tops.test_server import QUESTIONS, pictures
from tops_engine.conversation.messages import user_message
from tops_engine.engine import Engine
from tops_engine.mini import mini_path
from tops_engine.settings import Generation, ModelSpec, Pruning

__all__ = ["pictures"]

pytestmark = pytest.mark.vllm

NUM_TOKENS = 144
#: What `--max-tokens` is without the flag.
DEFAULT_MAX_TOKENS = 2**15


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Serve mini, keeping half of the tokens or what a request asks for."""
    from tests.integrations.vllm_tops.servers import OPTIONS, TOPS, environment, serving

    command = [*TOPS, "serve", "mini", "--keep", "0.5", "--trust-request-mm-kwargs", *OPTIONS]
    with serving([(command, environment())], tmp_path_factory.mktemp("logs")) as (started,):
        yield started


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine.load(ModelSpec(model=str(mini_path()), device="cpu"))


def jpeg(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.convert("RGB").save(buffer, "JPEG")
    return buffer.getvalue()


def ask(server: Server, question: str, *jpegs: bytes, max_tokens: int = 24, **extra_body: object) -> dict[str, Any]:
    """Send one request as VLMEvalKit does: pictures as JPEG in data URLs, then the question, and one answer."""
    urls = [f"data:image/jpeg;base64,{b64encode(data).decode()}" for data in jpegs]
    content: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    content.append({"type": "text", "text": question})
    messages = [{"role": "user", "content": content}]
    payload = {"model": "mini", "messages": messages, "n": 1, "max_tokens": max_tokens, "temperature": 0.0}
    request = urllib.request.Request(
        f"{server.url}/v1/chat/completions",
        json.dumps(payload | extra_body).encode(),
        {"Content-Type": "application/json", "Authorization": "Bearer sk-admin"},
    )
    with urllib.request.urlopen(request, timeout=120) as response:
        answered: dict[str, Any] = json.loads(response.read())
    return answered


def text_of(answered: dict[str, Any]) -> str:
    return str(answered["choices"][0]["message"]["content"]).strip()


@pytest.mark.parametrize("keep", [None, 0.222])
def test_answers_are_those_of_the_engine(
    server: Server, engine: Engine, pictures: list[Image.Image], keep: float | None
) -> None:
    extra: dict[str, Any] = {} if keep is None else {"mm_processor_kwargs": {"tops_keep": keep}}
    pruning = Pruning(keep=keep or 0.5, stages="first")
    for question in QUESTIONS[:2]:
        data = jpeg(pictures[0])
        expected = engine.chat([user_message(question, data)], pruning, Generation(max_tokens=24))
        answered = ask(server, question, data, **extra)
        assert text_of(answered) == expected.text.strip()
        assert answered["usage"]["prompt_tokens"] == expected.usage.input_tokens


def test_a_question_may_have_several_pictures_or_none(server: Server, pictures: list[Image.Image]) -> None:
    counts = [
        ask(server, "What?", *map(jpeg, pictures[:count]), max_tokens=1)["usage"]["prompt_tokens"] for count in range(3)
    ]
    assert counts[2] - counts[1] >= NUM_TOKENS / 2
    assert counts[1] - counts[0] >= NUM_TOKENS / 2


def test_the_default_length_is_more_than_a_small_context(server: Server, pictures: list[Image.Image]) -> None:
    """The documentation tells to set --max-tokens."""
    with pytest.raises(urllib.error.HTTPError) as caught:
        ask(server, "What?", jpeg(pictures[0]), max_tokens=DEFAULT_MAX_TOKENS)
    assert caught.value.code == 400
    assert "max_tokens" in caught.value.read().decode()
