"""Test the formats of function calls: published forms, what a grammar allows, reading in pieces, damaged texts."""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken
from transformers import AutoTokenizer

from tests.support.checkpoints import save_llava, small_tokenizer
from tops_engine.answers.base import ToolCall
from tops_engine.conversation.messages import read_conversation, user_message
from tops_engine.conversation.tool_formats import DEFAULT, FORMATS, ToolFormat, format_of
from tops_engine.conversation.tools import Tools
from tops_engine.engine import Engine
from tops_engine.families.chat_text import chat_text
from tops_engine.generation import TextStream
from tops_engine.generation.constraint import Constraint
from tops_engine.generation.tool_calls import CallReader, special_marks, tool_grammar
from tops_engine.settings import Generation, ModelSpec

SIDE = {"type": "string", "enum": ["left", "right"]}
PARAMETERS = {
    "type": "object",
    "properties": {
        "side": SIDE,
        "zoom": {"type": "integer", "minimum": 1, "maximum": 9},
        "exact": {"type": "boolean"},
        "area": {"type": "array", "items": {"type": "number"}, "maxItems": 4},
        "note": {"type": "object", "properties": {"by": {"type": ["string", "null"]}}},
        "text": {"type": "string"},
    },
    "required": ["side"],
}
CROP = {"type": "function", "function": {"name": "crop", "description": "Look closer.", "parameters": PARAMETERS}}
COUNT = {"type": "function", "function": {"name": "count", "description": "Count things."}}
TOOLS = Tools([CROP, COUNT])
ARGUMENTS: dict[str, Any] = {"side": "left", "zoom": 2, "exact": True, "area": [0.5, 1], "note": {"by": None}}
CALLS = [ToolCall(name="crop", arguments=ARGUMENTS), ToolCall(name="count", arguments={})]

# The two calls as chat templates on the hub write them (those of TRL's collection and of llama.cpp, rendered in
# November 2026), and as the documentation of the models states them where the templates write none.
PUBLISHED = {
    "Qwen3, Qwen3-VL": (
        "hermes",
        '<tool_call>\n{"name": "crop", "arguments": {"side": "left", "zoom": 2, "exact": true, "area": [0.5, 1], '
        '"note": {"by": null}}}\n</tool_call>\n<tool_call>\n{"name": "count", "arguments": {}}\n</tool_call>',
    ),
    "Qwen3.5": (
        "qwen_xml",
        "<tool_call>\n<function=crop>\n<parameter=side>\nleft\n</parameter>\n<parameter=zoom>\n2\n</parameter>\n"
        "<parameter=exact>\nTrue\n</parameter>\n<parameter=area>\n[0.5, 1]\n</parameter>\n<parameter=note>\n"
        '{"by": null}\n</parameter>\n</function>\n</tool_call>\n<tool_call>\n<function=count>\n</function>\n'
        "</tool_call>",
    ),
    "Qwen3.6": (
        "qwen_xml",
        "<tool_call>\n<function=crop>\n<parameter=side>\nleft\n</parameter>\n<parameter=zoom>\n2\n</parameter>\n"
        "<parameter=exact>\ntrue\n</parameter>\n<parameter=area>\n[0.5, 1]\n</parameter>\n<parameter=note>\n"
        '{"by": null}\n</parameter>\n</function>\n</tool_call>\n<tool_call>\n<function=count>\n</function>\n'
        "</tool_call>",
    ),
    "GLM-4.5V": (
        "glm",
        "<tool_call>crop\n<arg_key>side</arg_key>\n<arg_value>left</arg_value>\n<arg_key>zoom</arg_key>\n"
        "<arg_value>2</arg_value>\n<arg_key>exact</arg_key>\n<arg_value>true</arg_value>\n<arg_key>area</arg_key>\n"
        '<arg_value>[0.5, 1]</arg_value>\n<arg_key>note</arg_key>\n<arg_value>{"by": null}</arg_value>\n</tool_call>\n'
        "<tool_call>count\n</tool_call>",
    ),
    "Gemma 4": (
        "gemma",
        '<|tool_call>call:crop{area:[0.5,1],exact:true,note:{by:null},side:<|"|>left<|"|>,zoom:2}<tool_call|>'
        "<|tool_call>call:count{}<tool_call|>",
    ),
    "LFM2-VL": (
        "pythonic",
        "<|tool_call_start|>[crop(side='left', zoom=2, exact=True, area=[0.5, 1], note={'by': None}), count()]"
        "<|tool_call_end|>",
    ),
    "LFM2.5-VL": (
        "pythonic",
        "<|tool_call_start|>[crop(side='left', zoom=2, exact=True, area=[0.5, 1], note={\"by\": null}), count()]"
        "<|tool_call_end|>",
    ),
    "Mistral Small 3.1": (
        "mistral_list",
        '[TOOL_CALLS] [{"name": "crop", "arguments": {"side": "left", "zoom": 2, "exact": true, "area": [0.5, 1], '
        '"note": {"by": null}}, "id": "a1b2c3d4e"}, {"name": "count", "arguments": {}, "id": "a1b2c3d4f"}]',
    ),
    "Pixtral": (
        "mistral_list",
        '[TOOL_CALLS][{"name": "crop", "arguments": {"side": "left", "zoom": 2, "exact": true, "area": [0.5, 1], '
        '"note": {"by": null}}}, {"name": "count", "arguments": {}}]',
    ),
    "Ministral 3": (
        "mistral_named",
        '[TOOL_CALLS]crop[ARGS]{"side": "left", "zoom": 2, "exact": true, "area": [0.5, 1], "note": {"by": null}}'
        "[TOOL_CALLS]count[ARGS]{}",
    ),
    "Magistral": (
        "mistral_named",
        '[TOOL_CALLS]crop[CALL_ID]a1b2c3d4e[ARGS]{"side": "left", "zoom": 2, "exact": true, "area": [0.5, 1], '
        '"note": {"by": null}}[TOOL_CALLS]count[CALL_ID]a1b2c3d4f[ARGS]{}',
    ),
    "InternVL over InternLM": (
        "internlm",
        '<|action_start|><|plugin|>\n{"name": "crop", "parameters": {"side": "left", "zoom": 2, "exact": true, '
        '"area": [0.5, 1], "note": {"by": null}}}<|action_end|><|action_start|><|plugin|>\n'
        '{"name": "count", "parameters": {}}<|action_end|>',
    ),
}


def named(name: str) -> ToolFormat:
    return next(each for each in FORMATS if each.name == name)


EACH = pytest.mark.parametrize("tool_format", FORMATS, ids=lambda each: each.name)


def read(tool_format: ToolFormat, *pieces: str, is_cut: bool = False) -> CallReader:
    reader = CallReader(tool_format=tool_format, tools=TOOLS)
    for piece in pieces:
        reader.push(piece)
    reader.finish(is_cut)
    return reader


@pytest.mark.parametrize(("name", "text"), PUBLISHED.values(), ids=PUBLISHED)
def test_published_forms_are_read_whole_and_letter_by_letter(name: str, text: str) -> None:
    for pieces in ([f"Let me see.\n{text}"], f"Let me see.\n{text}"):
        reader = read(named(name), *pieces)
        assert reader.calls == CALLS
        assert reader.invalid_calls == []
        assert reader.text == "Let me see."


@EACH
def test_each_format_has_a_published_form_and_reads_what_it_writes(tool_format: ToolFormat) -> None:
    assert tool_format.name in {name for name, _ in PUBLISHED.values()}
    calls = [call.model_dump() for call in CALLS]
    assert read(tool_format, tool_format.write(calls)).calls == CALLS


def with_marks(tokenizer: Any, tool_format: ToolFormat) -> Any:
    tokenizer.add_tokens([AddedToken(mark, special=True, normalized=False) for mark in single_marks(tool_format)])
    return tokenizer


def single_marks(tool_format: ToolFormat) -> list[str]:
    """The marks that are one token; InternLM's first is two."""
    return [mark for mark in tool_format.marks if mark != "<|action_start|><|plugin|>"]


def allows(tokenizer: Any, tool_format: ToolFormat, tools: Tools, text: str) -> bool:
    """Return whether the grammar allows a text and lets the model end there."""
    eos = tokenizer.eos_token_id
    grammar = tool_grammar(tools, tokenizer, None, tool_format)
    constraint = Constraint(grammar, tokenizer, frozenset([eos]), [900], is_json=tool_format.is_json)
    for token in [*tokenizer.encode(text, add_special_tokens=False), eos]:
        scores = constraint(None, torch.zeros(1, len(tokenizer)))
        if constraint.finished(0) or scores[0, token].isinf():
            return bool(token == eos and constraint.finished(0))
        constraint.accept(torch.tensor([token]))
    return True


@pytest.mark.parametrize("are_tokens", [True, pytest.param(False, marks=pytest.mark.full)])
@EACH
def test_a_grammar_allows_what_the_format_writes_and_no_other_calls(tool_format: ToolFormat, are_tokens: bool) -> None:
    tokenizer = with_marks(small_tokenizer(), tool_format) if are_tokens else small_tokenizer()

    def allowed(choice: str, *calls: dict[str, Any], parallel: bool = True, said: str = "") -> bool:
        written = tool_format.write([{"name": "crop", "arguments": {}} | call for call in calls])
        return allows(tokenizer, tool_format, Tools([CROP, COUNT], choice, parallel), said + written)

    whole = {"arguments": {key: ARGUMENTS[key] for key in ("side", "zoom", "exact", "area", "note")}}
    left, wrong = {"arguments": {"side": "left"}}, {"arguments": {"side": "top"}}
    spoken = {"arguments": {"side": "right", "text": "Say it"}}
    count = {"name": "count"}
    for choice in ("auto", "required"):
        assert allowed(choice, whole)
        assert allowed(choice, left, count)
        assert allowed(choice, spoken)
        assert not allowed(choice, wrong)
        assert not allowed(choice, {"name": "cut"})
        assert not allowed(choice, {})  # side is required
        assert not allowed(choice, left, left, parallel=False)
    assert allowed("auto", left, said="Let me see. ")
    assert not allowed("required", left, said="Let me see. ")
    assert allowed("crop", left)
    assert not allowed("crop", count)
    assert not allowed("none", left)
    for choice, right in (("auto", True), ("none", True), ("required", False)):
        assert allows(tokenizer, tool_format, Tools([CROP], choice), "A cat <3 sat [here].") == right


TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=12)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-99, 99) | st.sampled_from([0.5, -2.25]) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "b"]), inner, max_size=2),
    max_leaves=6,
)


@settings(max_examples=25)
@given(VALUES)
@EACH
def test_any_value_survives_writing_and_reading(tool_format: ToolFormat, value: Any) -> None:
    marks = [*tool_format.marks, "</parameter>", "<parameter=", '"']
    if any(mark in json.dumps(value, ensure_ascii=False).replace('\\"', "`") for mark in marks if mark != '"'):
        return
    tools = Tools([{"type": "function", "function": {"name": "take", "parameters": {"properties": {"it": {}}}}}])
    written = tool_format.write([{"name": "take", "arguments": {"it": value}}])
    reader = CallReader(tool_format=tool_format, tools=tools)
    reader.push(written)
    reader.finish(is_cut=False)
    (call,) = reader.calls
    tagged = tool_format.name in ("qwen_xml", "glm")
    if tagged and isinstance(value, str):
        # Between tags a text has no quotes: what looks like a number is one, unless the schema asks for a text.
        assert str(call.arguments["it"]).strip() or not value.strip()
    else:
        assert call.arguments == {"it": value}


@EACH
def test_a_text_that_looks_like_a_number_stays_a_text_where_the_schema_asks_for_one(tool_format: ToolFormat) -> None:
    for text in ("12", "true", "null", "[1]", "a, b", "it is 5"):
        written = tool_format.write([{"name": "crop", "arguments": {"side": "left", "text": text}}])
        assert read(tool_format, written).calls[0].arguments["text"] == text


def damaged(text: str, generator: random.Random) -> str:
    """Return a text with letters removed, doubled, exchanged, or a part of it cut off or repeated."""
    letters = list(text)
    for _ in range(generator.randint(1, 6)):
        if not letters:
            break
        at = generator.randrange(len(letters))
        change = generator.randrange(5)
        if change == 0:
            del letters[at]
        elif change == 1:
            letters.insert(at, generator.choice("{}[]()<>|\"'\\=:,/\n\0 a1é"))
        elif change == 2:
            letters = letters[:at]
        elif change == 3:
            letters[at:at] = letters[at : at + 40]
        else:
            letters[at] = generator.choice("{}[]()<>|\"'=:,")
    return "".join(letters)


@pytest.mark.parametrize(("name", "text"), PUBLISHED.values(), ids=PUBLISHED)
def test_damaged_calls_never_raise_and_nothing_is_lost_in_silence(name: str, text: str) -> None:
    generator = random.Random(name)
    for _ in range(60):
        broken = damaged(text, generator)
        reader = read(named(name), broken, is_cut=generator.random() < 0.5)
        has_begin = named(name).begin in broken
        assert bool(reader.calls or reader.invalid_calls) or not has_begin or broken.count("[TOOL_CALLS]") > 0
        assert all(isinstance(call.arguments, dict) for call in reader.calls)


@pytest.mark.parametrize("inner", ["[" * 5000, "{a:" * 5000, "(" * 5000, '{"a":' * 5000, "-" * 9000, "f(" * 3000])
@EACH
def test_deep_and_long_texts_are_no_calls(tool_format: ToolFormat, inner: str) -> None:
    for text in (inner, f"call:crop{{a:{inner}", f"crop[ARGS]{inner}", f"[crop(a={inner})]", f"crop\n{inner}"):
        reader = read(tool_format, tool_format.begin + text + (tool_format.end or ""))
        assert len(reader.calls) + len(reader.invalid_calls) == 1


@EACH
def test_a_call_that_is_cut_off_is_invalid(tool_format: ToolFormat) -> None:
    written = tool_format.write([{"name": "crop", "arguments": {"side": "left", "zoom": 3}}])
    reader = read(tool_format, written[: written.index("left") + 2], is_cut=True)
    assert reader.calls == []
    (invalid,) = reader.invalid_calls
    assert invalid.error == "The call was cut off."


@EACH
def test_marks_that_are_special_tokens_are_part_of_the_text(tool_format: ToolFormat) -> None:
    tokenizer = with_marks(small_tokenizer(), tool_format)
    marks = special_marks(tokenizer, tool_format.marks)
    assert set(marks.values()) == set(single_marks(tool_format))
    stream = TextStream(tokenizer, ("left",), tool_format.begin, marks=marks)
    written = tool_format.write([call.model_dump() for call in CALLS])
    shown = [stream.push(token) for token in tokenizer.encode(written, add_special_tokens=False)]
    assert read(tool_format, *shown, stream.finish()).calls == CALLS


#: A chat template that says only in which format its model calls functions.
TEMPLATE = (
    "{{% if tools %}}{{{{ tools | tojson }}}}{{% endif %}}{{% for message in messages %}}[{{{{ message.role }}}}]"
    "{{% if message.content is string %}}{{{{ message.content }}}}{{% else %}}{{% for part in message.content %}}"
    "{{{{ '<image>' if part.type == 'image' else part.text }}}}{{% endfor %}}{{% endif %}}{{% endfor %}}"
    "{{# {marks} arguments #}}[assistant]"
)
SMALL = {
    "type": "function",
    "function": {
        "name": "crop",
        "parameters": {
            "properties": {"side": SIDE, "zoom": {"type": "integer", "minimum": 1, "maximum": 9}},
            "required": ["side"],
        },
    },
}


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """A random model whose tokenizer has the marks of all formats as special tokens."""
    marks = dict.fromkeys(mark for each in FORMATS for mark in single_marks(each))
    folder = Path(tmp_path_factory.mktemp("marks"))
    save_llava(folder, vocab_size=len(small_tokenizer()) + len(marks))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([AddedToken(mark, special=True, normalized=False) for mark in marks])
    tokenizer.save_pretrained(folder)
    engine = Engine(ModelSpec(model=str(folder), device="cpu"))
    yield engine
    engine.unload()


@EACH
def test_a_model_calls_in_its_own_format(
    engine: Engine, tool_format: ToolFormat, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = {"mistral_list": "[TOOL_CALLS]", "qwen_xml": "<function="}
    template = TEMPLATE.format(marks=shown.get(tool_format.name, " ".join(tool_format.marks)))
    monkeypatch.setattr(engine.family.processor, "chat_template", template)
    assert engine.family.tool_format.name == tool_format.name
    # One call of any length is quick; a model that never stops by itself makes eight.
    tools = Tools([SMALL, COUNT], "crop" if tool_format.name != "gemma" else "required")
    pieces = list(
        engine.stream([user_message("Hi")], None, Generation(max_tokens=400, temperature=1.5, seed=3), None, tools)
    )
    answer: Any = pieces[-1]
    assert answer.finish_reason == "stop"
    assert answer.tool_calls
    assert answer.invalid_tool_calls == []
    assert answer.text == ""
    # Each call streams as soon as it is complete.
    assert [piece for piece in pieces[:-1] if isinstance(piece, ToolCall)] == answer.tool_calls
    for call in answer.tool_calls:
        if call.name == "crop":
            assert call.arguments["side"] in ("left", "right")
            assert call.arguments.keys() <= {"side", "zoom"}
            assert isinstance(call.arguments.get("zoom", 1), int)


CONVERSATION: list[dict[str, Any]] = [
    {"role": "user", "content": "What is on the left?"},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"id": "a1", "type": "function", "function": {"name": "crop", "arguments": ARGUMENTS}}],
    },
    {"role": "tool", "tool_call_id": "a1", "content": "A <tool_response> cat."},
]


class Processor:
    """A tokenizer with a chat template."""

    image_token = "<image>"

    def __init__(self, template: str) -> None:
        self.chat_template, self.tokenizer = template, small_tokenizer()

    def apply_chat_template(self, messages: Any, chat_template: str, **options: Any) -> str:
        return str(self.tokenizer.apply_chat_template(messages, chat_template=chat_template, **options))


def prompt_in(template: str) -> str:
    return chat_text(Processor(template), read_conversation(CONVERSATION, TOOLS), None)


def test_a_template_that_writes_no_calls_gets_them_as_text() -> None:
    text = prompt_in(TEMPLATE.format(marks="<|tool_list_start|>"))
    (_, call), *_ = [PUBLISHED["LFM2-VL"]]
    assert call.replace(", count()", "") in text
    assert "[tool]A < tool_response> cat." in text


def test_ids_are_what_the_templates_of_mistral_demand() -> None:
    template = (
        "{% if tools %}[AVAILABLE_TOOLS]{% endif %}{% for message in messages %}"
        "{% for call in message.tool_calls or [] %}"
        "{% if call.id | length != 9 %}{{ raise_exception('length') }}{% endif %}"
        "[TOOL_CALLS]{{ call.id }}{% endfor %}"
        "{% if message.role == 'tool' %}[TOOL_RESULTS]{{ message.tool_call_id }}{% endif %}{% endfor %}"
    )
    _, call_id, result_id = prompt_in(template).replace("[TOOL_RESULTS]", "[TOOL_CALLS]").split("[TOOL_CALLS]")
    assert call_id == result_id
    assert len(call_id) == 9


def test_results_for_gemma_stand_in_the_message_with_the_call() -> None:
    template = (
        "{% if tools %}<|tool>{% endif %}{% for message in messages %}[{{ message.role }}]{% if message.tool_calls %}"
        "<|tool_call>{% for one in message.tool_responses %}{{ one.name }}:{{ one.response }}{% endfor %}{% endif %}"
        "{% endfor %}"
    )
    assert prompt_in(template).endswith("[user][assistant]<|tool_call>crop:A < tool_response> cat.")


@pytest.mark.parametrize(
    ("vocabulary", "name"),
    [
        ({"[TOOL_CALLS]"}, "mistral_list"),
        ({"[TOOL_CALLS]", "[ARGS]"}, "mistral_named"),
        ({"<|tool_call_start|>"}, "pythonic"),
        ({"<|plugin|>"}, "internlm"),
        ({"<tool_call>"}, "hermes"),
        (set(), "hermes"),
    ],
)
def test_a_template_without_functions_leaves_the_format_to_the_vocabulary(vocabulary: set[str], name: str) -> None:
    assert format_of("{{ messages }}", vocabulary).name == name
    assert DEFAULT.name == "hermes"
