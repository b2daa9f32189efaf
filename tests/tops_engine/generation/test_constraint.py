"""Test that answers with a schema parse and satisfy it for any model; random weights are the hardest case."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired

import pytest
import torch
from pydantic import BaseModel, Field, TypeAdapter
from tokenizers import Tokenizer, decoders, models, normalizers, trainers
from transformers import PreTrainedTokenizerFast
from typing_extensions import TypedDict

from tests.conftest import Picture
from tests.support.checkpoints import small_tokenizer
from tops_engine.answers.report import Answer
from tops_engine.conversation.messages import user_message
from tops_engine.engine import Engine, shared_engine
from tops_engine.errors import InvalidInput, MissingDependency
from tops_engine.generation import TextStream
from tops_engine.generation.constraint import Constraint
from tops_engine.generation.grammars import json_grammar
from tops_engine.settings import Generation, ModelSpec


class Part(BaseModel):
    name: str = Field(max_length=6)
    parts: list["Part"] = Field(max_length=1)


class Thing(BaseModel):
    colour: Literal["red", "green", "blue"]
    size: int = Field(ge=0, le=100)
    share: float
    label: str
    tags: list[Annotated[str, Field(max_length=4)]]
    day: str = Field(pattern=r"^\d{4}-\d{2}$")
    note: str | None
    part: Part


class Switches(TypedDict):
    left: bool
    right: NotRequired[bool]


KINDS: list[Any] = [Thing, list[int], Switches, Literal["yes", "no"], bool, tuple[int, str]]
QUESTION = [user_message("What is shown?")]


def schema_of(kind: Any) -> dict[str, Any]:
    return TypeAdapter(kind).json_schema()


def refusal(**options: Any) -> str:
    with pytest.raises(InvalidInput) as error:
        Generation(**options)
    return str(error.value)


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("options", [{}, {"temperature": 2.0, "seed": 1}, {"repetition_penalty": 2.0}], ids=str)
def test_answers_satisfy_the_schema(llava_engine: Engine, kind: Any, options: dict[str, Any]) -> None:
    generation = Generation(json_schema=schema_of(kind), max_tokens=400, **options)
    for answer in llava_engine.batch([QUESTION, [user_message("Hello")]], generation=generation):
        assert answer.finish_reason == "stop"
        TypeAdapter(kind).validate_json(answer.text)


def test_a_row_of_a_batch_is_the_answer_alone(llava_engine: Engine, picture: Picture) -> None:
    conversations = [[user_message("What?", picture())], QUESTION, [user_message("Name it.")]]
    generation = Generation(json_schema=schema_of(Thing), max_tokens=80)
    together = llava_engine.batch(conversations, generation=generation)
    for messages, answer in zip(conversations, together, strict=True):
        assert answer.text == llava_engine.chat(messages, generation=generation).text


def test_streamed_pieces_are_the_answer(llava_engine: Engine) -> None:
    *pieces, answer = llava_engine.stream(QUESTION, generation=Generation(json_schema=schema_of(Thing)))
    assert isinstance(answer, Answer)
    assert "".join(map(str, pieces)) == answer.text


def test_too_few_tokens_are_reported_as_a_cut(llava_engine: Engine) -> None:
    generation = Generation(json_schema=schema_of(Thing), max_tokens=5)
    assert llava_engine.chat(QUESTION, generation=generation).finish_reason == "length"


def test_stop_strings_are_not_looked_for_in_the_answer(llava_engine: Engine) -> None:
    generation = Generation(json_schema=schema_of(Literal["stop here"]), stop=("stop",))
    assert llava_engine.chat(QUESTION, generation=generation).text == '"stop here"'


def test_a_model_without_an_end_token_completes_the_answer(
    llava_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llava_engine.family.model.generation_config, "eos_token_id", [10**6])
    answer = llava_engine.chat(QUESTION, generation=Generation(json_schema=schema_of(Part), max_tokens=300))
    Part.model_validate_json(answer.text)


def test_where_a_model_would_end_its_answer_it_ends_the_text_it_is_in() -> None:
    schema = {"type": "object", "properties": {"colour": {"type": "string"}}, "required": ["colour"]}
    engine = shared_engine(ModelSpec(model="mini", device="cpu"))
    question = [user_message("Hello")]
    answer = engine.chat(question, generation=Generation(json_schema=schema, max_tokens=200))
    assert len(json.loads(answer.text)["colour"]) < 40, "mini knows no JSON, but when a sentence is over"


def test_bounds_of_the_schema_are_kept_and_missing_ones_added() -> None:
    def bounded(schema: dict[str, Any]) -> Any:
        return json.loads(json_grammar(schema).removeprefix("start: %json "))

    assert bounded({"type": "array", "items": {"type": "integer"}})["maxItems"] == 16
    assert bounded({"type": "array", "minItems": 20})["maxItems"] == 20
    assert bounded({"type": "array", "maxItems": 90})["maxItems"] == 90
    assert bounded({"type": "integer", "minimum": 3})["minimum"] == 3
    assert bounded({"type": "object", "properties": {}})["additionalProperties"] is False
    assert bounded({"type": "object", "properties": {}, "additionalProperties": True})["additionalProperties"] is True


def test_texts_leave_tokens_for_what_follows(llava_engine: Engine) -> None:
    texts = {"type": "object", "properties": {name: {"type": "string"} for name in "abcd"}, "required": list("abcd")}
    for max_tokens in (120, 300):
        generation = Generation(json_schema=texts, max_tokens=max_tokens, repetition_penalty=1.5)
        answer = llava_engine.chat(QUESTION, generation=generation)
        assert answer.finish_reason == "stop"
        lengths = [len(llava_engine.family.tokenizer.encode(text)) for text in json.loads(answer.text).values()]
        assert max(lengths) <= max_tokens


def test_heads_may_be_wider_than_the_tokenizer() -> None:
    tokenizer = small_tokenizer()
    width = len(tokenizer) + 77
    constraint = Constraint('start: "ab"', tokenizer, frozenset([tokenizer.eos_token_id]), [400])
    text = ""
    while not text or not constraint.finished(0):
        scores = constraint(None, torch.zeros(1, width).index_fill(1, torch.arange(len(tokenizer), width), 9.0))
        token = scores.argmax(dim=-1)
        constraint.accept(token)
        text += tokenizer.decode(token)
    assert text == "ab"


def llama_tokenizer() -> PreTrainedTokenizerFast:
    """Build a tokenizer like Llama 2's, which LLaVA-1.5 has: words begin with a mark, unknown characters are bytes."""
    trained = Tokenizer(models.BPE(unk_token="<unk>"))
    trained.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    special = ["<unk>", "<s>", "</s>"]
    text = '{"colour": "red", "tags": [1, 2, 3], "size": 4} true false null 0123456789'
    trained.train_from_iterator([text] * 3, trainers.BpeTrainer(special_tokens=special, show_progress=False))
    model = json.loads(trained.to_str())["model"]
    vocab = model["vocab"] | {f"<0x{byte:02X}>": len(model["vocab"]) + byte for byte in range(256)}
    merges = [tuple(pair) for pair in model["merges"]]
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = trained.normalizer
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(parts)
    tokenizer.add_special_tokens(special)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


@pytest.mark.parametrize("seed", range(4))
def test_tokenizers_with_word_marks_and_bytes_write_sound_answers(seed: int) -> None:
    tokenizer = llama_tokenizer()
    constraint = Constraint(json_grammar(schema_of(Thing)), tokenizer, frozenset([tokenizer.eos_token_id]), [400])
    stream, generator, text = TextStream(tokenizer), torch.Generator().manual_seed(seed), ""
    while not text or not constraint.finished(0):
        scores = constraint(None, 3 * torch.randn(1, len(tokenizer), generator=generator))
        constraint.accept(scores.argmax(dim=-1))
        text += stream.push(int(scores.argmax()))
    Thing.model_validate_json(text + stream.finish())


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ("{", "json_schema is not JSON"),
        ([1], "json_schema is a JSON Schema object"),
        ({"a": {1, 2}}, "json_schema holds what JSON cannot"),
        ("nowhere/schema.json", "json_schema names a file that cannot be read"),
    ],
)
def test_what_is_no_schema_is_refused(schema: object, reason: str) -> None:
    assert reason in refusal(json_schema=schema)


def test_text_object_and_file_are_the_same_setting(tmp_path: Path) -> None:
    schema = schema_of(Thing)
    (tmp_path / "thing.json").write_text(json.dumps(schema, indent=2))
    given = [schema, json.dumps(schema), tmp_path / "thing.json", str(tmp_path / "thing.json")]
    assert len({Generation(json_schema=form) for form in given}) == 1


@pytest.mark.parametrize(
    "schema",
    [
        {"not": {"type": "string"}},
        {"type": "integer", "minimum": 5, "maximum": 3},
        {"type": "integer", "maximum": "9"},
        {"type": "array", "minItems": "2"},
        {"type": "array", "prefixItems": 3},
        {"type": "object", "minProperties": [1]},
    ],
    ids=str,
)
def test_a_schema_that_cannot_be_followed_is_refused_in_one_sentence(
    llava_engine: Engine, schema: dict[str, Any]
) -> None:
    with pytest.raises(InvalidInput, match=r"^The grammar cannot be followed: [^\n]*$"):
        llava_engine.chat(QUESTION, generation=Generation(json_schema=schema))


def test_a_missing_library_is_named(llava_engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(MissingDependency, match=r"pip install 'llguidance>=1\.4'"):
        llava_engine.chat(QUESTION, generation=Generation(json_schema={"type": "integer"}))
    with pytest.raises(MissingDependency, match="llguidance"):
        llava_engine.chat(QUESTION, generation=Generation(json_schema={"type": "string", "format": "email"}))


TEXTS: list[dict[str, Any]] = [
    {},
    {"pattern": "^[a-z]+$"},
    {"pattern": "^(ab)*$"},
    {"pattern": "^a+b$"},
    {"pattern": r"^\S+ \S+$"},
    {"pattern": "x"},
    {"format": "email"},
    {"format": "hostname"},
    {"format": "uri"},
    {"format": "date-time"},
    {"minLength": 3},
    {"maxLength": 5000},
    {"pattern": "^[a-z]+$", "maxLength": 5000},
    {"format": "not-known"},
]


@pytest.mark.parametrize("keywords", TEXTS, ids=str)
@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.full)])
def test_a_text_ends_whatever_its_keywords(
    llava_engine: Engine, monkeypatch: pytest.MonkeyPatch, keywords: dict[str, Any], seed: int
) -> None:
    monkeypatch.setattr(llava_engine.family.model.generation_config, "eos_token_id", [10**6])
    text = {"type": "string", **keywords}
    schema = {"type": "object", "properties": {"a": text, "b": text}, "required": ["a", "b"]}
    generation = Generation(json_schema=schema, max_tokens=400, temperature=1.0, seed=seed)
    answer = llava_engine.chat(QUESTION, generation=generation)
    assert answer.finish_reason == "stop"
    assert json.loads(answer.text).keys() == {"a", "b"}


def test_bounds_of_texts_with_patterns_leave_room_for_the_pattern() -> None:
    def length(**keywords: Any) -> Any:
        schema = {"type": "string", **keywords}
        return json.loads(json_grammar(schema).removeprefix("start: %json ")).get("maxLength")

    assert length(pattern="^a+$") == length(format="email") == 128
    assert length(pattern="^a{200}$") == 256
    assert length(pattern="^a+$", minLength=600) == 1024
    assert length(pattern="^a+$", maxLength=9) == 9
    assert length() is None
    assert "maxLength" not in json_grammar({"enum": ["a"]})


def test_objects_that_name_no_properties_are_bounded(llava_engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llava_engine.family.model.generation_config, "eos_token_id", [10**6])
    schema = {"type": "object", "additionalProperties": {"type": "boolean"}}
    answer = llava_engine.chat(QUESTION, generation=Generation(json_schema=schema, max_tokens=3000))
    assert answer.finish_reason == "stop"
    assert len(json.loads(answer.text)) <= 16
