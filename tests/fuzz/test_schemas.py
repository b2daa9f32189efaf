"""Damaged JSON schemas and functions: as the form of an answer, as structured output, and as tools."""

import contextlib
from typing import Any

import pytest
from langchain_core.exceptions import OutputParserException
from langchain_tops import ChatTOPSLlava

from tests.fuzz.mutations import Mutator
from tests.fuzz.rules import level_memory, seeds, survives
from tops_engine.conversation.messages import user_message
from tops_engine.conversation.tools import Tools
from tops_engine.engine import Engine, shared_engine
from tops_engine.settings import Generation, ModelSpec

QUESTION = [user_message("What number is written?")]
NUMBER = {"type": "integer", "minimum": 0, "maximum": 9, "description": "The number."}
CARD: dict[str, Any] = {
    "title": "Card",
    "type": "object",
    "properties": {
        "number": NUMBER,
        "colour": {"enum": ["red", "blue", None, 3]},
        "note": {"type": ["string", "null"]},
    },
    "required": ["number"],
    "additionalProperties": False,
}
TREE: dict[str, Any] = {
    "$defs": {
        "Tree": {"type": "object", "properties": {"branches": {"type": "array", "items": {"$ref": "#/$defs/Tree"}}}}
    },
    "$ref": "#/$defs/Tree",
}
MANY: dict[str, Any] = {
    "anyOf": [
        {"type": "string", "pattern": "^[a-z]{2,5}$", "maxLength": 9},
        {"type": "string", "format": "date-time"},
        {"type": "array", "prefixItems": [NUMBER, {"const": {"a": [1]}}], "items": False, "minItems": 2, "maxItems": 3},
        {"allOf": [{"properties": {"x": NUMBER}}, {"properties": {"y": {"type": "number", "multipleOf": 0.5}}}]},
    ]
}
FUNCTION: dict[str, Any] = {
    "type": "function",
    "function": {"name": "look", "description": "Look closer.", "parameters": CARD, "strict": True},
}
SCHEMAS: list[dict[str, Any]] = [
    CARD,
    TREE,
    MANY,
    {"type": "json_schema", "json_schema": {"name": "card", "strict": True, "schema": CARD}},
    {"name": "card", "input_schema": CARD},
    FUNCTION,
]
TOOLS: list[list[dict[str, Any]]] = [
    [FUNCTION],
    [FUNCTION, {"name": "count", "description": "Count.", "input_schema": TREE}],
    [{"title": "zoom", "description": "Zoom.", "type": "object", "properties": {"factor": NUMBER}}],
    [{"type": "web_search_preview"}, FUNCTION],
]
CHOICES: tuple[Any, ...] = (
    None,
    "auto",
    "any",
    "none",
    "look",
    True,
    {"type": "tool", "name": "look"},
    3,
    [],
    "x" * 999,
)
METHODS = ("json_schema", "function_calling", "json_mode")


@pytest.fixture(scope="module")
def engine() -> Engine:
    return shared_engine(ModelSpec(model="mini", device="cpu"))


@pytest.fixture(scope="module")
def model() -> ChatTOPSLlava:
    return ChatTOPSLlava(model="mini", device="cpu", max_tokens=5)


def test_damaged_schemas_are_followed_or_refused(engine: Engine, model: ChatTOPSLlava) -> None:
    with level_memory("schemas"):
        for seed in seeds("schemas"):
            mutator, case = Mutator(seed), f"schema {seed}"
            schema = mutator.value(SCHEMAS[seed % len(SCHEMAS)])
            generation = survives(case, lambda schema=schema: Generation(json_schema=schema, max_tokens=5))
            if generation is not None:
                survives(case, engine.chat, QUESTION, None, generation)
            method = mutator.random.choice(METHODS)
            survives(case, structured, model, schema, method)


def structured(model: ChatTOPSLlava, schema: Any, method: Any) -> None:
    bound = model.with_structured_output(schema, method=method)
    with contextlib.suppress(OutputParserException):  # five tokens are too few for most schemas
        bound.invoke("Hello")


def test_damaged_tools_are_bound_or_refused(engine: Engine, model: ChatTOPSLlava) -> None:
    with level_memory("tools"):
        for seed in seeds("tools"):
            mutator, case = Mutator(seed), f"tools {seed}"
            tools, choice = mutator.value(TOOLS[seed % len(TOOLS)]), mutator.random.choice(CHOICES)
            made = survives(case, Tools, tools, choice)
            if made is not None:
                survives(case, engine.chat, QUESTION, None, Generation(max_tokens=5), None, made)
            survives(case, call, model, tools, choice)


def call(model: ChatTOPSLlava, tools: Any, choice: Any) -> None:
    model.bind_tools(tools, tool_choice=choice).invoke("Hello")
