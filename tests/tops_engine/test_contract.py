"""Test the contract of engines: the same calls on a local model and on the same model behind a server."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import tops_engine.mini
from tests.support.chat_server import ChatServer
from tops_engine.contract import ChatEngine, Request
from tops_engine.conversation.messages import user_message
from tops_engine.engine import Engine, shared_engine
from tops_engine.remote import RemoteEngine
from tops_engine.settings import Generation, ModelSpec, Pruning

SAMPLE = Path(tops_engine.mini.__file__).with_name("sample.jpg")
QUESTION, DESCRIBE = ([user_message(text, SAMPLE)] for text in ("What number is written?", "Describe the picture."))


@pytest.fixture(scope="module", params=["here", "behind a server"])
def engine(request: pytest.FixtureRequest) -> Iterator[ChatEngine[Any]]:
    mini = shared_engine(ModelSpec(model="mini", device="cpu"))
    if request.param == "here":
        yield mini
        return
    with ChatServer(mini, Pruning(keep=0.5, stages="first")).running() as server:
        remote = RemoteEngine(server.url, max_retries=0, timeout=60)
        yield remote
        remote.close()


def test_requests_of_any_settings_are_answered_in_their_order(engine: ChatEngine[Any]) -> None:
    long, short = Generation(max_tokens=9), Generation(max_tokens=2)
    requests = [
        Request(DESCRIBE, None, long),
        Request(QUESTION, None, long),
        Request(DESCRIBE, None, short),
        Request(DESCRIBE, Pruning(keep=0.3, stages="first"), long),
        Request(DESCRIBE, None, long),
    ]
    answers = engine.run(requests)
    assert [answer.text for answer in answers] == [engine.run([request])[0].text for request in requests]
    assert answers[0].text == answers[4].text != answers[2].text
    assert engine.run([]) == []


def test_visual_tokens_of_a_size_are_counted(engine: ChatEngine[Any]) -> None:
    counted = engine.count_visual_tokens(640, 480)
    with_picture, without = (engine.count_tokens([user_message("a", *pictures)]) for pictures in ([SAMPLE], []))
    # Two more tokens enclose a picture in mini's template; the server's own pruning keeps half.
    assert 72 <= counted <= with_picture - without <= counted + 2


def test_calls_with_messages_are_requests(engine: ChatEngine[Any]) -> None:
    generation, pruning = Generation(max_tokens=12), Pruning(keep=0.3, stages="first")
    request = Request(DESCRIBE, pruning, generation)
    (expected,) = engine.run([request])
    assert engine.chat(DESCRIBE, pruning=pruning, generation=generation).text == expected.text
    batch = engine.batch([DESCRIBE, QUESTION], pruning=pruning, generation=generation)
    assert [answer.text for answer in batch] == [expected.text, engine.chat(QUESTION, pruning, generation).text]
    for stream in (engine.stream(DESCRIBE, pruning, generation), engine.run_stream(request)):
        pieces: list[Any] = list(stream)
        answer = pieces.pop()
        assert "".join(pieces) == answer.text == expected.text
        assert len(pieces) > 1


def test_an_answer_states_what_is_known(engine: ChatEngine[Any]) -> None:
    answer: Any = list(engine.stream(QUESTION, Pruning(keep=0.5, stages="first")))[-1]
    usage = answer.usage
    assert usage.input_visual_tokens == 72
    assert usage.input_tokens > 72
    known = isinstance(engine, Engine)
    assert (usage.unpruned_visual_tokens, usage.layer_average) == ((144, 72) if known else (None, None))
    assert [stage.visual_tokens for stage in usage.stages] == ([[72]] if known else [])
    assert (answer.token_map is not None) == known
    assert 0 < answer.timings.first_token <= answer.timings.total
    lines = answer.summary().splitlines()
    assert f"answer {usage.completion_tokens} tokens (stop)" in "\n".join(lines)
    assert f"first token after {answer.timings.first_token:.3f} s, {answer.timings.total:.3f} s in total" in lines
    assert lines[-1].startswith("model mini")


def test_a_request_has_defaults_and_is_frozen() -> None:
    request = Request(QUESTION)
    assert (request.pruning, request.generation, request.tools) == (None, Generation(), None)
    with pytest.raises(AttributeError):
        request.pruning = Pruning()  # type: ignore[misc]
