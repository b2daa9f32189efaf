"""Test tools: the prompt that the model gets, the calls that it can write, and how they are read."""

import json
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken

from tests.conftest import Picture
from tests.support.checkpoints import small_tokenizer
from tops_engine.conversation.messages import Message, read_conversation, user_message
from tops_engine.conversation.tools import Tools
from tops_engine.engine import Engine
from tops_engine.errors import InvalidInput
from tops_engine.generation import TextStream
from tops_engine.generation.constraint import Constraint
from tops_engine.generation.tool_calls import CallReader, tool_grammar
from tops_engine.settings import Generation

CROP = {
    "type": "function",
    "function": {
        "name": "crop",
        "description": "Look closer.",
        "parameters": {
            "type": "object",
            "properties": {
                "side": {"enum": ["left", "right"]},
                "zoom": {"type": "integer", "minimum": 1, "maximum": 9},
            },
            "required": ["side"],
        },
    },
}
COUNT = {"type": "function", "function": {"name": "count", "description": "Count things."}}
CALL = {"id": "a1", "type": "function", "function": {"name": "crop", "arguments": {"side": "left"}}}
QUESTION = [user_message("What is on the left?")]
SPOKEN = '<tool_call>\n{"name": "crop", "arguments": {"side": "left"}}\n</tool_call>'

# As the Qwen models write it.
HERMES_TEMPLATE = (
    "{% if tools %}TOOLS {% for tool in tools %}{{ tool | tojson }}\n{% endfor %}write <tool_call> {% endif %}"
    "{% for message in messages %}[{{ message.role }}]"
    "{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content %}"
    "{{ '<image>' if part.type == 'image' and message.role == 'user' else part.text }}{% endfor %}{% endif %}"
    "{% for call in message.tool_calls or [] %}<tool_call>{{ call.function.arguments | tojson }}{% endfor %}"
    "{% endfor %}[assistant]"
)


def checked(call: dict[str, Any]) -> None:
    """Check that a call satisfies the parameters of its function."""
    if call["name"] == "count":
        assert call["arguments"] == {}
    else:
        assert call["name"] == "crop"
        assert call["arguments"]["side"] in ("left", "right")
        assert 1 <= call["arguments"].get("zoom", 1) <= 9
        assert call["arguments"].keys() <= {"side", "zoom"}


@pytest.mark.parametrize("temperature", [0.0, 1.5])
@pytest.mark.parametrize(("choice", "parallel"), [("required", True), ("required", False), ("crop", True)])
def test_demanded_calls_are_made_and_sound(
    llava_engine: Engine, choice: str, parallel: bool, temperature: float
) -> None:
    tools = Tools([CROP, COUNT], choice, parallel)
    generation = Generation(max_tokens=600, temperature=temperature, seed=2)
    for answer in llava_engine.batch([QUESTION, [user_message("Hi")]], generation=generation, tools=tools):
        assert answer.finish_reason == "stop"
        assert answer.text == ""
        assert answer.invalid_tool_calls == []
        assert answer.tool_calls
        for call in answer.tool_calls:
            checked(call.model_dump())
        if choice == "crop" or not parallel:
            assert len(answer.tool_calls) == 1
        if choice == "crop":
            assert answer.tool_calls[0].name == "crop"


def test_without_a_choice_a_model_may_just_answer(llava_engine: Engine) -> None:
    messages = [{"role": "system", "content": "Be brief."}, *QUESTION]
    answer = llava_engine.chat(messages, generation=Generation(max_tokens=20), tools=Tools([CROP]))
    assert answer.text
    assert answer.tool_calls == []


def test_a_call_that_is_cut_off_is_invalid(llava_engine: Engine) -> None:
    answer = llava_engine.chat(QUESTION, generation=Generation(max_tokens=18), tools=Tools([CROP], "required"))
    assert answer.finish_reason == "length"
    assert answer.tool_calls == []
    (invalid,) = answer.invalid_tool_calls
    assert "cut off" in invalid.error


def tokenizer_with_marks(marks: bool) -> Any:
    tokenizer = small_tokenizer()
    if marks:
        tokenizer.add_tokens([AddedToken(mark, special=False) for mark in ("<tool_call>", "</tool_call>")])
    return tokenizer


def allows(tokenizer: Any, tools: Tools, text: str, json_schema: str | None = None) -> bool:
    """Return whether the grammar allows a text and lets the model end there."""
    eos = tokenizer.eos_token_id
    constraint = Constraint(tool_grammar(tools, tokenizer, json_schema), tokenizer, frozenset([eos]), [500])
    for token in [*tokenizer.encode(text, add_special_tokens=False), eos]:
        scores = constraint(None, torch.zeros(1, len(tokenizer)))
        if scores[0, token].isinf():
            return bool(token == eos and constraint.finished(0))
        constraint.accept(torch.tensor([token]))
    return True


@pytest.mark.parametrize("marks", [True, False])
@pytest.mark.parametrize(
    ("tools", "said", "right"),
    [
        (Tools([CROP, COUNT]), "A cat <3 sat.", True),
        (Tools([CROP, COUNT]), f"Let me see.\n{SPOKEN}", True),
        (Tools([CROP, COUNT]), f"{SPOKEN}\n{SPOKEN} and then", True),
        (Tools([CROP, COUNT]), SPOKEN.replace("left", "top"), False),
        (Tools([CROP, COUNT]), "<tool_call> I would", False),
        (Tools([CROP], parallel=False), f"{SPOKEN}\n{SPOKEN}", False),
        (Tools([COUNT]), SPOKEN, False),
        (Tools([COUNT]), '<tool_call>\n{"name": "count", "arguments": {}}\n</tool_call>', True),
        (Tools([CROP], "none"), "A cat.", True),
        (Tools([CROP], "none"), f"Then {SPOKEN}", False),
        (Tools([CROP], "required"), "A cat.", False),
        (Tools([CROP], "required"), f"{SPOKEN}\n{SPOKEN}", True),
        (Tools([CROP, COUNT], "crop"), SPOKEN, True),
        (Tools([CROP, COUNT], "count"), SPOKEN, False),
        (Tools([]), "A cat.", True),
    ],
    ids=str,
)
def test_what_a_model_may_write(tools: Tools, said: str, right: bool, marks: bool) -> None:
    assert allows(tokenizer_with_marks(marks), tools, said) == right


@pytest.mark.parametrize(("said", "right"), [(SPOKEN, True), ('{"a": true}', True), ("A cat.", False)])
def test_calls_or_an_answer_by_a_schema(said: str, right: bool) -> None:
    schema = '{"type": "object", "properties": {"a": {"type": "boolean"}}}'
    assert allows(tokenizer_with_marks(False), Tools([CROP]), said, schema) == right


@given(st.lists(st.sampled_from(["Hello ", " <tool", "\n", "bye", SPOKEN, "<tool_call>{}</tool_call>"]), max_size=5))
def test_pieces_of_any_size_are_read_the_same(parts: list[str]) -> None:
    text = "".join(parts)
    whole, piecewise = CallReader(), CallReader()
    shown = whole.push(text) + whole.finish()
    assert shown == whole.text
    assert "".join([*(piecewise.push(letter) for letter in text), piecewise.finish()]) == piecewise.text
    assert piecewise.text.split() == shown.split()
    assert piecewise.calls == whole.calls
    assert len(whole.calls) == parts.count(SPOKEN)
    assert len(whole.invalid_calls) == parts.count("<tool_call>{}</tool_call>")
    assert "<tool_call>" not in shown


def prompt_text(engine: Engine, messages: Sequence[Message], tools: Tools | None) -> str:
    prompt = engine.family.prepare(read_conversation(messages, tools))
    return str(engine.family.tokenizer.decode(prompt.input_ids)).replace("<image>" * 16, "<image>")


def test_a_template_without_functions_gets_them_as_text(llava_engine: Engine, picture: Picture) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        user_message("What is on the left?", picture()),
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "a1", "content": [{"type": "image", "image": picture(seed=2)}]},
    ]
    text = prompt_text(llava_engine, messages, Tools([CROP]))
    system, rest = text.split("USER: ", 1)
    assert system.startswith("SYSTEM: Be brief.\n\nYou can call these functions:\n" + json.dumps(CROP))
    assert rest == (
        f"<image>\nWhat is on the left? ASSISTANT: {SPOKEN}</s>"
        "USER: <tool_response>\n<image>\n\n</tool_response>\n ASSISTANT:"
    )


def test_results_in_a_row_and_the_question_after_them_are_one_turn(llava_engine: Engine) -> None:
    messages = [
        *QUESTION,
        {"role": "assistant", "content": "", "tool_calls": [CALL, {**CALL, "id": "a2"}]},
        {"role": "tool", "tool_call_id": "a1", "content": "one"},
        {"role": "tool", "tool_call_id": "a2", "content": "two"},
        user_message("So?"),
    ]
    text = prompt_text(llava_engine, messages, None)
    assert text.endswith(
        "</s>USER: <tool_response>\none\n</tool_response>\n<tool_response>\ntwo\n</tool_response>\nSo? ASSISTANT:"
    )


def test_a_template_with_functions_writes_them_itself(
    llava_engine: Engine, picture: Picture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llava_engine.family.processor, "chat_template", HERMES_TEMPLATE)
    messages = [
        user_message("What is on the left?", picture()),
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "a1", "content": "A cat."},
    ]
    text = prompt_text(llava_engine, messages, Tools([COUNT]))
    assert text.startswith(f"TOOLS {json.dumps(COUNT)}\nwrite")
    assert text.endswith(
        '[user]<image>What is on the left?[assistant]<tool_call>{"side": "left"}[tool]A cat.[assistant]'
    )


def test_pictures_a_template_cannot_place_in_a_result_follow_in_a_user_turn(
    llava_engine: Engine, picture: Picture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llava_engine.family.processor, "chat_template", HERMES_TEMPLATE)
    image = {"type": "image", "image": picture()}
    messages = [
        *QUESTION,
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "a1", "content": [image]},
        {"role": "tool", "tool_call_id": "a1", "content": [{"type": "text", "text": "Two:"}, image]},
    ]
    text = prompt_text(llava_engine, messages, Tools([CROP]))
    assert text.endswith("[tool]The picture follows.[tool]Two:[user]<image><image>[assistant]")


def test_stop_strings_end_the_text_but_not_a_call() -> None:
    tokenizer = small_tokenizer()
    stream = TextStream(tokenizer, ("left",), stop_before="<tool_call>")
    for token in tokenizer.encode(SPOKEN):
        stream.push(token)
    assert stream.text == SPOKEN
    stream = TextStream(tokenizer, ("left",), stop_before="<tool_call>")
    for token in tokenizer.encode("on the left"):
        stream.push(token)
    assert (stream.text, stream.stopped) == ("on the ", True)


@pytest.mark.parametrize(
    ("functions", "choice", "reason"),
    [
        ([{"type": "function", "function": {}}], "auto", "needs a name of its own"),
        ([CROP, CROP], "auto", "needs a name of its own"),
        ([CROP], "cut", "'cut' is not one of auto, none, required, crop"),
        ([], "required", "there are no functions"),
        ([CROP], {"name": "crop"}, "is not a word or the name of a function"),
        (CROP, "auto", "The functions are a list, not"),
        ([{"type": "function", "function": {"name": "a", "parameters": ["x"]}}], "auto", "not a JSON Schema object"),
        ([{"type": "function", "function": {"name": ["a"]}}], "auto", "needs a name of its own"),
        (["crop" * 5000], "auto", "The tool 'crop.* is not a function"),
    ],
)
def test_tools_that_make_no_sense_are_refused(functions: Any, choice: Any, reason: str) -> None:
    with pytest.raises(InvalidInput, match=reason):
        Tools(functions, choice)


@pytest.mark.parametrize("calls", [[], [{**CALL, "id": "other"}]])
def test_a_result_of_no_call_is_refused(calls: list[Any]) -> None:
    messages = [*QUESTION, {"role": "assistant", "content": "Hm.", "tool_calls": calls}]
    with pytest.raises(InvalidInput, match="answers the call 'a1', which no assistant message before it made"):
        read_conversation([*messages, {"role": "tool", "tool_call_id": "a1", "content": "A cat."}])


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        ({"name": "crop"}, "A tool call is"),
        ({"function": {"name": "crop", "arguments": "{"}}, "are not a JSON object"),
        ({"function": {"name": "crop", "arguments": 3}}, "are not a JSON object"),
    ],
)
def test_a_call_that_cannot_be_read_is_refused(call: Any, reason: str) -> None:
    with pytest.raises(InvalidInput, match=reason):
        read_conversation([*QUESTION, {"role": "assistant", "content": "", "tool_calls": [call]}, *QUESTION])


def test_arguments_may_be_given_as_text() -> None:
    call = {"id": "a1", "type": "function", "function": {"name": "crop", "arguments": '{"side": "left"}'}}
    conversation = read_conversation([*QUESTION, {"role": "assistant", "content": "", "tool_calls": [call]}, *QUESTION])
    assert conversation.messages[1]["tool_calls"] == [CALL]
