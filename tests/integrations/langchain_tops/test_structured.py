"""Structured output: objects that parse and validate, or a clear error."""

from typing import Annotated, Any, Literal

import pytest
from langchain_core.exceptions import OutputParserException
from langchain_core.messages import AIMessage
from langchain_tops import ChatTOPSLlava
from pydantic import BaseModel, Field
from typing_extensions import TypedDict

from tests.integrations.langchain_tops.conftest import asking
from tops_engine.errors import InvalidInput

Method = Literal["json_schema", "function_calling"]
METHODS: list[Method] = ["json_schema", "function_calling"]


class Card(BaseModel):
    """A card with a number."""

    number: int = Field(ge=0, le=9, description="The number on the card.")
    colour: Literal["red", "blue"]


class CardDict(TypedDict):
    """A card with a number."""

    number: Annotated[int, ..., "The number on the card."]


JSON_CARD = {
    "title": "Card",
    "description": "A card.",
    "type": "object",
    "properties": {"number": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["number"],
}


class Tree(BaseModel):
    """A tree."""

    name: str = Field(max_length=5)
    branches: list["Tree"] = Field(max_length=1)


@pytest.mark.parametrize("method", METHODS)
def test_schemas_of_every_kind(model: ChatTOPSLlava, photo: Any, method: Method) -> None:
    question = asking("What number is written?", photo)
    card = model.with_structured_output(Card, method=method).invoke(question)
    assert isinstance(card, Card)
    for schema in (CardDict, JSON_CARD):
        answer = model.with_structured_output(schema, method=method).invoke(question)
        assert answer.keys() == {"number"}
        assert isinstance(answer["number"], int)


def test_mini_reads_the_number_into_the_object(model: ChatTOPSLlava, photo: Any) -> None:
    card = model.with_structured_output(Card).invoke(asking("What number is written?", photo), keep=1.0)
    assert card.number == 5


async def test_streams_and_asynchronous_calls(model: ChatTOPSLlava, photo: Any) -> None:
    question = asking("What number is written?", photo)
    structured = model.with_structured_output(JSON_CARD)
    whole = structured.invoke(question)
    assert list(structured.stream(question))[-1] == whole
    assert await structured.ainvoke(question) == whole
    assert structured.batch([question, question]) == [whole, whole]


def test_recursive_models(model: ChatTOPSLlava) -> None:
    assert isinstance(model.with_structured_output(Tree).invoke("Hello", max_tokens=400), Tree)


@pytest.mark.parametrize("method", [*METHODS, "json_mode"])
@pytest.mark.parametrize("schema", [Card, JSON_CARD], ids=["pydantic", "json"])
def test_answers_that_are_cut_off_are_errors(model: ChatTOPSLlava, method: Any, schema: Any) -> None:
    cut = model.with_structured_output(schema, method=method, max_tokens=1)
    with pytest.raises(OutputParserException, match=r"cut off after 1 tokens.*raise max_tokens"):
        cut.invoke("Hello")
    with pytest.raises(OutputParserException, match="cut off"):
        list(cut.stream("Hello"))
    raw = model.with_structured_output(schema, method=method, max_tokens=1, include_raw=True).invoke("Hello")
    assert raw["parsed"] is None
    assert "cut off" in str(raw["parsing_error"])


@pytest.mark.parametrize("method", METHODS)
def test_the_message_may_come_along(model: ChatTOPSLlava, method: Method) -> None:
    answer = model.with_structured_output(Card, method=method, include_raw=True).invoke("Hello")
    assert isinstance(answer["raw"], AIMessage)
    assert isinstance(answer["parsed"], Card)
    assert answer["parsing_error"] is None


def test_json_mode_gives_an_object(model: ChatTOPSLlava) -> None:
    assert isinstance(model.with_structured_output(None, method="json_mode").invoke("Hello"), dict)


def test_a_response_format_may_be_bound_by_itself(model: ChatTOPSLlava) -> None:
    response_format = {"type": "json_schema", "json_schema": {"name": "card", "schema": JSON_CARD}}
    answer = model.bind_tools([], response_format=response_format).invoke("Hello")
    assert answer.text.startswith('{"number": ')
    assert model.invoke("Hello", response_format={"type": "text"}).text == model.invoke("Hello").text


@pytest.mark.parametrize(
    ("use", "reason"),
    [
        (lambda model: model.with_structured_output(Card, method="magic"), "'magic' is not one of"),
        (lambda model: model.with_structured_output(None), "needs a schema"),
        (lambda model: model.invoke("Hello", response_format={"type": "xml"}), "is not one of text"),
        (lambda model: model.with_structured_output({"title": "A", "not": {}}), "cannot be followed"),
    ],
)
def test_what_makes_no_sense_is_refused(model: ChatTOPSLlava, use: Any, reason: str) -> None:
    with pytest.raises(InvalidInput, match=reason):
        use(model)


OBJECT = {"type": "object", "properties": {"number": {"type": "integer"}}, "required": ["number"]}
WRAPPED: dict[str, Any] = {"name": "card", "strict": True, "schema": OBJECT}
FORMS: dict[str, Any] = {
    "openai's format": WRAPPED,
    "openai's response format": {"type": "json_schema", "json_schema": WRAPPED},
    "openai's function": {"name": "card", "parameters": OBJECT},
    "openai's tool": {"type": "function", "function": {"name": "card", "parameters": OBJECT}},
    "anthropic's tool": {"name": "card", "input_schema": OBJECT},
    "no title": OBJECT,
    "no type": {"properties": OBJECT["properties"], "required": ["number"]},
    "several types": OBJECT | {"title": "card", "type": ["object", "null"]},
    "a property called schema": OBJECT | {"properties": {"schema": {"const": 3}, "number": {"type": "integer"}}},
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("form", FORMS)
def test_a_schema_is_read_in_the_form_of_any_provider(model: ChatTOPSLlava, photo: Any, form: str, method: Any) -> None:
    question = asking("What number is written?", photo)
    answer = model.with_structured_output(FORMS[form], method=method).invoke(question)
    assert isinstance(answer["number"], int)


def test_a_response_format_may_be_a_class_or_a_schema(model: ChatTOPSLlava, photo: Any) -> None:
    question = asking("What number is written?", photo)
    for response_format in (Card, OBJECT, WRAPPED):
        answer = model.invoke(question, response_format=response_format)
        assert '"number": ' in answer.text
    same = model.with_structured_output(OBJECT, include_raw=True).invoke(question)["raw"]
    assert model.invoke(question, response_format={"type": "json_schema", "json_schema": WRAPPED}).text == same.text


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ({"title": "card", "type": "object", "propertys": OBJECT["properties"]}, "did you mean 'properties'"),
        ({"title": "card", "type": "object", "properties": {"a": {"type": "string", "maxlength": 3}}}, "'maxLength'"),
        ({"name": "card", "strict": True}, "has the name 'card' but holds no schema"),
        ({"type": "json_schema", "json_schema": {"name": "card"}}, "has the name 'card' but holds no schema"),
        ({"type": "json_schema", "json_schema": "card"}, "holds 'card' under 'json_schema'"),
        ({"fields": {"number": "int"}}, "'fields', which JSON Schema does not have, and no other"),
    ],
)
def test_a_schema_that_is_not_understood_is_refused_by_name(
    model: ChatTOPSLlava, schema: Any, reason: str, method: Any
) -> None:
    with pytest.raises(InvalidInput, match=reason):
        model.with_structured_output(schema, method=method)
    with pytest.raises(InvalidInput, match=reason):
        model.invoke("Hello", json_schema=schema)


def test_arguments_of_a_function_are_an_object(model: ChatTOPSLlava) -> None:
    with pytest.raises(InvalidInput, match="'array'; use method=\"json_schema\""):
        model.with_structured_output({"type": "array", "items": {"type": "integer"}}, method="function_calling")
