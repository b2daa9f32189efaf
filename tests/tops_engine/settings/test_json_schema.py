"""Test JSON Schemas in every accepted form."""

import json
from pathlib import Path
from typing import Any

import pytest

from tops_engine.errors import InvalidInput
from tops_engine.settings import Generation
from tops_engine.settings.json_schema import has_field

OBJECT = {"type": "object", "properties": {"digit": {"type": "integer"}}, "required": ["digit"]}


def read(schema: Any) -> Any:
    text = Generation(json_schema=schema).json_schema
    assert text is not None
    return json.loads(text)


@pytest.mark.parametrize(
    "form",
    [
        {"name": "card", "strict": True, "schema": OBJECT},
        {"type": "json_schema", "name": "card", "strict": True, "schema": OBJECT},
        {"type": "json_schema", "json_schema": {"name": "card", "schema": OBJECT}},
        {"name": "card", "parameters": OBJECT},
        {"name": "card", "input_schema": OBJECT},
        {"type": "function", "function": {"name": "card", "parameters": OBJECT}},
    ],
)
def test_wrappers_of_providers_are_removed_and_their_name_is_the_title(form: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "form.json").write_text(json.dumps(form))
    for given in (form, json.dumps(form), tmp_path / "form.json"):
        assert read(given) == {"title": "card", **OBJECT}


@pytest.mark.parametrize(
    ("schema", "kind"),
    [
        ({"properties": {}}, "object"),
        ({"required": ["a"]}, "object"),
        ({"items": {"const": 1}}, "array"),
        ({"pattern": "^a$"}, "string"),
        ({"maxLength": 3}, "string"),
        ({"minimum": 3, "maximum": 5}, "number"),
    ],
)
def test_a_missing_type_is_the_one_that_the_keywords_restrict(schema: dict[str, Any], kind: str) -> None:
    assert read(schema) == {"type": kind, **schema}
    assert read({"type": "object", "properties": {"a": schema}})["properties"]["a"] == {"type": kind, **schema}
    assert read({"anyOf": [schema, {"type": "null"}]})["anyOf"][0] == {"type": kind, **schema}


@pytest.mark.parametrize(
    "schema",
    [
        {},
        {"title": "anything"},
        {"enum": [1, "a"]},
        {"const": {"propertys": 1}},
        {"$ref": "#/$defs/a", "$defs": {"a": {"type": "null"}}},
        {"properties": {"propertys": {"type": "null"}}, "type": "object"},
        {"type": "integer", "unit": "mm", "x-propertys": 1},
        {"type": "object", "default": {"requird": 1}, "examples": [{"itemz": 1}]},
        {"maxLength": 3, "maximum": 4},
    ],
)
def test_everything_else_stays_as_it_is(schema: dict[str, Any]) -> None:
    assert read(schema) == schema


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("propertys", "properties"),
        ("Properties", "properties"),
        ("additionalproperties", "additionalProperties"),
        ("additional_properties", "additionalProperties"),
        ("requird", "required"),
        ("enumm", "enum"),
        ("max_length", "maxLength"),
        ("minimun", "minimum"),
        ("patern", "pattern"),
        ("any_of", "anyOf"),
        ("ref", "$ref"),
    ],
)
def test_a_misspelt_keyword_is_refused_with_the_right_one_at_any_depth(wrong: str, right: str) -> None:
    for schema in (
        {"type": "object", wrong: 1},
        {"type": "object", "properties": {"a": {"anyOf": [{"type": "null"}, {"type": "string", wrong: 1}]}}},
    ):
        with pytest.raises(InvalidInput, match=rf"{wrong!r}, which JSON Schema does not have.*{right.strip('$')}"):
            Generation(json_schema=schema)


def test_lone_surrogates_in_a_schema_are_replaced_and_pairs_joined() -> None:
    assert read({"enum": ["\ud83d", "\ud83d\ude00"]}) == {"enum": ["\ufffd", "\U0001f600"]}
    assert Generation(stop="\ud83d").stop == ("\ufffd",)


NESTED = {
    "type": "object",
    "properties": {
        "note": {"anyOf": [{"$ref": "#/$defs/note"}, {"type": "null"}]},
        "list": {"type": "array", "prefixItems": [{"type": "null"}], "items": {"$ref": "#/$defs/note"}},
    },
    "$defs": {"note": {"type": "object", "properties": {"text": {"type": "string"}, "note": {"$ref": "#/$defs/note"}}}},
}


@pytest.mark.parametrize("path", ["note", "note.text", "note.note.note.text", "list", "list.0", "list.7.text"])
def test_a_field_of_a_schema_is_found(path: str) -> None:
    assert has_field(NESTED, path)


@pytest.mark.parametrize("path", ["", "text", "note.0", "list.0.text", "list.text", "list.7.text.x"])
def test_a_field_that_a_schema_lacks_is_not_found(path: str) -> None:
    assert not has_field(NESTED, path)
