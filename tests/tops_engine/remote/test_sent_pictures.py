"""Test a client that sends visual tokens in place of pictures, over real sockets."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Picture
from tests.support.chat_server import ChatServer
from tests.tops_engine.remote.conftest import PRUNING, SAMPLE
from tops_engine.conversation.messages import user_message
from tops_engine.encoding.encoder import shared_encoder
from tops_engine.encoding.places import encoder_at
from tops_engine.engine import Engine
from tops_engine.errors import InvalidInput, ModelNotFound, ServerError
from tops_engine.remote import RemoteAnswer, RemoteEngine
from tops_engine.settings import Generation, ModelSpec, Pruning

KEEP = Pruning(keep=0.5)
SHORT = Generation(max_tokens=16)


@pytest.fixture
def encoding_server(server: ChatServer) -> ChatServer:
    """Return the server, which knows the sample by the tokens that an encoder keeps of it."""
    here = shared_encoder(ModelSpec(model="mini", device="cpu"))
    server.encoded = {here.encode(SAMPLE, KEEP).image_embeds: SAMPLE}
    return server


@pytest.fixture
def encoding(encoding_server: ChatServer) -> Iterator[RemoteEngine]:
    engine = RemoteEngine(encoding_server.url, max_retries=0, timeout=60, encoder=encoder_at("here", device="cpu"))
    yield engine
    engine.close()


def test_the_server_gets_tokens_and_gives_the_engines_answer(
    mini: Engine, encoding: RemoteEngine, encoding_server: ChatServer
) -> None:
    messages = [user_message("What number is written?", SAMPLE), {"role": "assistant", "content": "5"}]
    messages.append(user_message("And here?", SAMPLE))
    local = mini.chat(messages, PRUNING, SHORT)
    answer = encoding.chat(messages, KEEP, SHORT)
    *pieces, streamed = encoding.stream(messages, KEEP, SHORT)
    assert isinstance(streamed, RemoteAnswer)
    assert answer.text == streamed.text == "".join(map(str, pieces)) == local.text
    assert answer.usage is not None
    assert answer.usage.visual_tokens == 2 * 72
    assert answer.pruning == Pruning(keep=0.5, stages="first").resolved()
    for body in encoding_server.requests:
        kinds = [
            part["type"] for message in body["messages"] if message["role"] == "user" for part in message["content"]
        ]
        assert kinds == ["image_embeds", "text", "image_embeds", "text"]
        assert "mm_processor_kwargs" not in body
    assert encoding.connect(KEEP) == ("mini", Pruning(keep=0.5, stages="first"))


def test_a_prompt_is_counted_with_the_tokens_that_were_kept_last(mini: Engine, encoding: RemoteEngine) -> None:
    answer = encoding.chat([user_message("a", SAMPLE)], KEEP, SHORT)
    assert answer.usage is not None
    assert encoding.count_tokens([user_message("a", SAMPLE)]) == answer.usage.input_tokens


def test_all_pictures_keep_one_number(encoding: RemoteEngine, picture: Picture) -> None:
    encoding.chat([user_message("?", SAMPLE)], KEEP, SHORT)
    with pytest.raises(InvalidInput, match=r"Encoded pictures of 72 tokens went to .* and this one has 14"):
        encoding.chat([user_message("?", SAMPLE)], Pruning(keep=0.1), SHORT)
    with pytest.raises(InvalidInput, match="leave out their own budgets"):
        encoding.chat([user_message("?", SAMPLE, keep=0.1)], KEEP, SHORT)
    assert encoding.chat([user_message("?", SAMPLE)], KEEP, SHORT).text


@pytest.mark.parametrize(
    ("message", "sentence"),
    [
        (None, "takes no encoded pictures; start vLLM with --enable-mm-embeds, for clients that you trust"),
        (
            "Image embedding hidden dimension mismatch: got 7, but model expects 160. Embedding shape: (1, 5, 7)",
            "The server has another model than the encoder; both need the same checkpoint",
        ),
        ("Unknown part type: image_embeds", "does not take encoded pictures, as vLLM does with --enable-mm-embeds"),
    ],
)
def test_what_a_server_says_becomes_a_sentence(server: ChatServer, message: str | None, sentence: str) -> None:
    engine = RemoteEngine(server.url, max_retries=0, encoder=encoder_at("here", device="cpu"))
    if message is not None:
        server.encoded = Refusing(message)
    with pytest.raises(InvalidInput, match=sentence):
        engine.chat([user_message("?", SAMPLE)], KEEP, SHORT)
    engine.close()


class Refusing(dict[str, Any]):
    """Refuses every picture with a message."""

    def __init__(self, message: str) -> None:
        self._message = message

    def __getitem__(self, name: str) -> Any:
        raise InvalidInput(self._message)


def test_a_server_with_another_checkpoint_is_refused_before_a_picture_is_sent(server: ChatServer) -> None:
    server.checkpoint = "llava-hf/llava-1.5-13b-hf"
    encoder = shared_encoder(ModelSpec(model="llava-hf/llava-1.5-7b-hf", device="cpu"))
    engine = RemoteEngine(server.url, max_retries=0, encoder=encoder)
    with pytest.raises(InvalidInput, match=r"The encoder has the model 'llava-hf/llava-1\.5-7b-hf' and the server"):
        engine.chat([user_message("?", SAMPLE)], KEEP, SHORT)
    assert not server.requests
    engine.close()


def test_the_checkpoint_is_the_one_that_the_server_states(server: ChatServer, tmp_path: Path) -> None:
    server.checkpoint = str(tmp_path)
    engine = RemoteEngine(server.url, max_retries=0, encoder=encoder_at("here", device="cpu"))
    with pytest.raises(ModelNotFound, match="cannot be found"):
        engine.chat([user_message("?", SAMPLE)], KEEP, SHORT)
    engine.close()


def test_a_server_that_is_down_is_said_before_the_tower_loads() -> None:
    engine = RemoteEngine("http://127.0.0.1:9", max_retries=0, encoder=encoder_at("here", device="cpu"))
    with pytest.raises(ServerError, match="No server answers"):
        engine.chat([user_message("?", SAMPLE)], KEEP, SHORT)


@pytest.mark.parametrize(
    ("encode", "options", "sentence"),
    [
        ("there", {}, "give `here`, or the address of an encoder such as http://host:8100"),
        ("http://a:1", {"device": "cpu"}, "device is decided where the encoder runs"),
        ("http://user:word@a:1", {}, "address holds a name, a password"),
    ],
)
def test_a_place_that_is_none_is_refused(encode: str, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InvalidInput, match=sentence):
        encoder_at(encode, **options)
