"""Answers of servers that are not vLLM."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.support.dialects import DIALECTS, LEFT, RIGHT, USAGE, Dialect, call, chunk, more, whole
from tests.tops_engine.remote.test_strangers import answering
from tops_engine.answers.base import BaseAnswer, ReasoningPiece
from tops_engine.conversation.messages import user_message
from tops_engine.conversation.thinking import MARKS
from tops_engine.conversation.tools import Tools
from tops_engine.errors import InvalidInput, ServerError
from tops_engine.remote import RemoteEngine
from tops_engine.remote.requests import chat_request
from tops_engine.settings import Generation

QUESTION = [user_message("What number is written?")]
TOOLS = Tools([{"type": "function", "function": {"name": "crop"}}])
CALLS = [("crop", json.loads(LEFT)), ("crop", json.loads(RIGHT))]


@contextmanager
def engine(body: Any, status: int = 200) -> Iterator[RemoteEngine]:
    """An engine whose server answers with a body, or with the pieces of a stream."""
    streamed = isinstance(body, list)
    text = "".join(f"data: {json.dumps(piece)}\n\n" for piece in body) + "data: [DONE]\n\n" if streamed else ""
    kind = "text/event-stream" if streamed else "application/json"
    with answering(text or json.dumps(body), kind, status) as server:
        remote = RemoteEngine(server.url, max_retries=0)
        yield remote
        remote.close()


def answer_to(body: Any) -> BaseAnswer:
    with engine(body) as remote:
        if not isinstance(body, list):
            return remote.chat(QUESTION, tools=TOOLS)
        *pieces, answer = remote.stream(QUESTION, tools=TOOLS)
        assert isinstance(answer, BaseAnswer)
        assert "".join(piece for piece in pieces if isinstance(piece, str)) == answer.text
        assert "".join(piece.text for piece in pieces if isinstance(piece, ReasoningPiece)) == answer.reasoning
        return answer


def calls_of(body: Any) -> list[tuple[str, dict[str, Any]]]:
    answer = answer_to(body)
    assert answer.invalid_tool_calls == []
    return [(call.name, call.arguments) for call in answer.tool_calls]


@pytest.mark.parametrize("dialect", DIALECTS.values(), ids=DIALECTS)
def test_calls_and_texts_of_each_dialect(dialect: Dialect) -> None:
    assert calls_of(dialect.calls) == CALLS
    assert calls_of(dialect.streamed_calls) == CALLS
    answer = answer_to(dialect.text)
    assert (answer.text, answer.finish_reason) == ("5", "stop")


@pytest.mark.parametrize("dialect", DIALECTS.values(), ids=DIALECTS)
def test_errors_of_each_dialect_are_shown(dialect: Dialect) -> None:
    with engine(dialect.error, status=400) as remote, pytest.raises(InvalidInput, match=r"request: It went wrong\.$"):
        remote.chat(QUESTION)
    with engine(dialect.error, status=500) as remote, pytest.raises(ServerError, match=r"\(500\): It went wrong\.$"):
        remote.chat(QUESTION)


@pytest.mark.parametrize(
    "error", [{"message": "overloaded, retry"}, "overloaded, retry", {"detail": "overloaded, retry"}]
)
def test_an_error_with_the_status_of_a_success_is_shown(error: Any) -> None:
    with engine({"error": error}) as remote, pytest.raises(ServerError, match=r"error: overloaded, retry\.$"):
        remote.chat(QUESTION)
    with engine([chunk({"content": "5"}), {"error": error}]) as remote, pytest.raises(ServerError, match="overloaded"):
        list(remote.stream(QUESTION))


def test_a_long_error_is_cut() -> None:
    with engine({"error": "x" * 9000}, status=400) as remote, pytest.raises(InvalidInput) as caught:
        remote.chat(QUESTION)
    assert len(str(caught.value)) < 600


PIECES: dict[str, list[dict[str, Any]]] = {
    "one piece each, no marks": [call(LEFT), call(RIGHT)],
    "one number for both": [call(LEFT, index=0), call(RIGHT, index=0)],
    "an id in each piece": [call('{"side":', id="a"), more(' "left"}', id="a"), call(RIGHT, id="b")],
    "name and id in each piece": [
        call('{"side":', index=0, id="a"),
        call(' "left"}', index=0, id="a"),
        call(RIGHT, id="b"),
    ],
    "interleaved": [call("", index=0, id="a"), call("", index=1, id="b"), more(LEFT, index=0), more(RIGHT, index=1)],
    "an empty id in later pieces": [
        call("", index=0, id="a"),
        more(LEFT, index=0, id=""),
        call(RIGHT, index=1, id="b"),
    ],
    "a number in the first piece only": [call("", index=0, id="a"), more(LEFT), call("", index=1, id="b"), more(RIGHT)],
}


@pytest.mark.parametrize("pieces", PIECES.values(), ids=PIECES)
def test_pieces_of_calls_are_put_together(pieces: list[dict[str, Any]]) -> None:
    assert calls_of([*(chunk({"tool_calls": [piece]}) for piece in pieces), chunk({}, "tool_calls")]) == CALLS


@pytest.mark.parametrize("reason", ["stop", "eos", "eos_token", "stop_sequence", "end_turn", "some_new_reason"])
def test_a_reason_that_is_not_known_does_not_lose_the_answer(reason: str) -> None:
    for body in (whole({"content": "A whole answer."}, reason), [chunk({"content": "A whole answer."}, reason)]):
        answer = answer_to(body)
        assert (answer.text, answer.finish_reason) == ("A whole answer.", "stop")


@pytest.mark.parametrize("reason", [None, ""])
def test_a_whole_answer_needs_no_reason_but_a_stream_does(reason: str | None) -> None:
    assert answer_to(whole({"content": "A whole answer."}, reason)).finish_reason == "stop"
    with pytest.raises(ServerError, match="states no reason, after 'Half an'"):
        answer_to([chunk({"content": "Half an"}, reason)])


@pytest.mark.parametrize("reason", ["length", "max_tokens", "model_length"])
def test_reasons_that_mean_a_cut(reason: str) -> None:
    answer = answer_to(whole({"content": "5", "tool_calls": [call('{"side"', id="a")]}, reason))
    assert answer.finish_reason == "length"
    assert answer.invalid_tool_calls[0].error == "The call was cut off."


@pytest.mark.parametrize("reason", ["content_filter", "abort", "error"])
def test_an_answer_that_is_not_complete_is_an_error_that_names_the_reason(reason: str) -> None:
    for body in (whole({"content": "Half an"}, reason), [chunk({"content": "Half an"}, reason)]):
        with pytest.raises(ServerError, match=f"'{reason}', after 'Half an'"):
            answer_to(body)


THOUGHT, SAID = "It is written below.", "5"


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
def test_reasoning_in_a_field_of_its_own_is_separate(name: str) -> None:
    stream = [
        chunk({"role": "assistant", "content": None, name: "It is "}),
        chunk({"content": None, name: "written below."}),
        chunk({"content": SAID, name: None}),
        chunk({}, "stop"),
    ]
    usage = USAGE | {"completion_tokens_details": {"reasoning_tokens": 4}}
    for body in (whole({"content": SAID, name: THOUGHT}, "stop", usage=usage), stream):
        answer = answer_to(body)
        assert (answer.reasoning, answer.text) == (THOUGHT, SAID)
        assert answer.usage is None or answer.usage.reasoning_tokens == 4


@pytest.mark.parametrize("marks", MARKS, ids=lambda marks: marks.begin)
@pytest.mark.parametrize("size", [1, 3, 100])
def test_reasoning_that_is_left_in_the_text_is_separate(marks: Any, size: int) -> None:
    text = f"\n{marks.begin}{marks.label}{THOUGHT}{marks.end}\n\n{SAID}"
    stream = [chunk({"content": text[start : start + size]}) for start in range(0, len(text), size)]
    for body in (whole({"content": text}, "stop"), [*stream, chunk({}, "stop")]):
        answer = answer_to(body)
        assert (answer.reasoning, answer.text) == (THOUGHT, SAID)


@pytest.mark.parametrize("text", ["<thi", "< think>", "[", "5 <think>6</think>", "</think>"])
def test_text_that_only_looks_like_reasoning_is_the_answer(text: str) -> None:
    for body in (whole({"content": text}, "stop"), [*(chunk({"content": one}) for one in text), chunk({}, "stop")]):
        answer = answer_to(body)
        assert (answer.reasoning, answer.text) == ("", text)


def test_reasoning_that_was_cut_off_is_no_answer() -> None:
    answer = answer_to([chunk({"content": "<think>It is wri</th"}), chunk({}, "length")])
    assert (answer.reasoning, answer.text, answer.finish_reason) == ("It is wri</th", "", "length")


@pytest.mark.parametrize(
    ("thinking", "fields"),
    [
        (None, {}),
        ("on", {"chat_template_kwargs": {"enable_thinking": True}}),
        ("off", {"chat_template_kwargs": {"enable_thinking": False}}),
        (64, {"chat_template_kwargs": {"enable_thinking": True}, "thinking_token_budget": 64}),
    ],
)
def test_thinking_is_asked_of_the_server(thinking: Any, fields: dict[str, Any]) -> None:
    assert chat_request(QUESTION, Generation(thinking=thinking), None).get("extra_body", {}) == fields


def test_a_refusal_is_the_answer() -> None:
    said = "I can't help with that."
    assert answer_to(whole({"content": None, "refusal": said}, "stop")).text == said
    assert answer_to([chunk({"content": None, "refusal": said}), chunk({}, "stop")]).text == said


def test_counts_that_are_missing_are_unknown() -> None:
    assert answer_to(whole({"content": "5"}, "stop", usage={})).usage is None
    assert answer_to(whole({"content": "5"}, "stop", usage=None)).usage is None
