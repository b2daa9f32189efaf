"""Read JSON Schemas in every form that people give them, as one plain JSON Schema."""

import difflib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tops_engine.errors import quote, reason_of
from tops_engine.files import read_text_file
from tops_engine.text import with_valid_texts

# All keywords of JSON Schema from draft 4 on, and those of OpenAPI 3.
KEYWORDS = frozenset(
    "$schema $id $ref $defs $anchor $comment $vocabulary $dynamicRef $dynamicAnchor $recursiveRef $recursiveAnchor id "
    "title description default examples example deprecated readOnly writeOnly definitions type enum const "
    "allOf anyOf oneOf not if then else dependentSchemas dependentRequired dependencies "
    "properties patternProperties additionalProperties propertyNames unevaluatedProperties required minProperties "
    "maxProperties items prefixItems additionalItems unevaluatedItems contains minContains maxContains minItems "
    "maxItems uniqueItems minLength maxLength pattern format contentEncoding contentMediaType contentSchema minimum "
    "maximum exclusiveMinimum exclusiveMaximum multipleOf nullable discriminator xml externalDocs".split()
)

# Keywords that annotate a value and do not restrict it.
ANNOTATIONS = frozenset(
    "$schema $id $anchor $comment $vocabulary $defs id title description default examples example deprecated readOnly "
    "writeOnly definitions xml externalDocs".split()
)

# The type of the values that a keyword restricts.
TYPE_OF_KEYWORD = {
    **dict.fromkeys("properties required additionalProperties patternProperties propertyNames".split(), "object"),
    **dict.fromkeys("minProperties maxProperties".split(), "object"),
    **dict.fromkeys("items prefixItems minItems maxItems contains uniqueItems".split(), "array"),
    **dict.fromkeys("pattern minLength maxLength".split(), "string"),
    **dict.fromkeys("minimum maximum exclusiveMinimum exclusiveMaximum multipleOf".split(), "number"),
}

# Keywords whose value is a schema, a list of schemas, or a mapping of names to schemas.
SCHEMA_KEYWORDS = frozenset(
    "items additionalProperties additionalItems propertyNames contains not if then else unevaluatedItems "
    "unevaluatedProperties".split()
)
LIST_KEYWORDS = frozenset(["anyOf", "oneOf", "allOf", "prefixItems", "items"])
MAPPING_KEYWORDS = frozenset("properties patternProperties $defs definitions dependentSchemas".split())

# How alike two words are (0 to 1) if one is probably a misspelling of the other.
LIKENESS = 0.8


def schema_text(value: object) -> str:
    """Return a schema as JSON text; equal schemas give equal texts. The keys keep their order, as answers follow it.

    Parameters
    ----------
    value : a JSON Schema as a mapping, as text or as the path of a file, in a form that :func:`read_schema` reads.

    Raises
    ------
    ValueError
        If it is not a schema.
    """
    if isinstance(value, str | os.PathLike) and not str(value).lstrip().startswith("{"):
        value = _file_text(Path(value))
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise ValueError(f"json_schema is not JSON: {reason_of(error)}") from None
    if not isinstance(value, Mapping):
        raise ValueError("json_schema is a JSON Schema object, its text, or the path of a file that holds it")
    try:
        schema: dict[str, Any] = json.loads(json.dumps(dict(value)))
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"json_schema holds what JSON cannot: {reason_of(error)}") from None
    return json.dumps(with_valid_texts(read_schema(schema)), ensure_ascii=False)


def read_schema(value: Mapping[str, Any]) -> dict[str, Any]:
    """Return a plain JSON Schema.

    OpenAI's and Anthropic's wrappers are removed: ``{"type": "json_schema", "json_schema": {...}}``,
    ``{"name", "strict", "schema"}``, ``{"type": "function", "function": {...}}``, ``{"name", "parameters"}`` and
    ``{"name", "input_schema"}``. The name becomes the title. A schema without a type gets the one that its keywords
    restrict: ``{"properties": ...}`` is an object.

    Raises
    ------
    ValueError
        If a wrapper holds no schema, if a keyword seems to be misspelt, or if no keyword is known.
    """
    schema = _with_types(_unwrapped(value))
    assert isinstance(schema, dict)
    unknown = [key for key in schema if key not in KEYWORDS and not key.startswith("x-")]
    if unknown and not (schema.keys() & KEYWORDS) - ANNOTATIONS:
        raise ValueError(
            f"json_schema has the keyword {quote(unknown[0])}, which JSON Schema does not have, and no other"
        )
    return schema


def has_field(schema: Mapping[str, Any], path: str) -> bool:
    """Return whether values of a schema may have a field; ``a.b`` is field b of a, and ``items.0`` the first item."""
    parts: list[Any] = [schema]
    for name in path.split("."):
        inner = [_field(part, name) for part in _alternatives(parts, schema)]
        parts = [part for part in inner if part is not None]
    return bool(parts)


def _alternatives(parts: list[Any], root: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return schemas, those that they refer to, and those that they combine."""
    found: list[Mapping[str, Any]] = []
    waiting = list(parts)
    while waiting:
        part = waiting.pop()
        if not isinstance(part, Mapping) or part in found:
            continue
        found.append(part)
        waiting += [one for key in ("anyOf", "oneOf", "allOf") for one in part.get(key, ())]
        if isinstance(part.get("$ref"), str) and part["$ref"].startswith("#"):
            target: Any = root
            for key in filter(None, part["$ref"][1:].split("/")):
                target = target.get(key) if isinstance(target, Mapping) else None
            waiting.append(target)
    return found


def _field(schema: Mapping[str, Any], name: str) -> Any:
    if name in schema.get("properties", {}):
        return schema["properties"][name]
    if name.isdigit():
        first = schema.get("prefixItems", ())
        return first[int(name)] if int(name) < len(first) else schema.get("items")
    return None


def _unwrapped(value: Mapping[str, Any]) -> dict[str, Any]:
    if "json_schema" in value and value.get("type", "json_schema") == "json_schema":
        return _unwrapped(_inner(value, "json_schema"))
    if "function" in value and value.get("type", "function") == "function":
        return _unwrapped(_inner(value, "function"))
    if value.get("type") == "json_schema" and "schema" not in value:
        raise ValueError('json_schema has the type "json_schema" but holds no schema; give it under "schema"')
    for key in ("schema", "parameters", "input_schema"):
        if key in value and not value.keys() & {"properties", "$ref", "anyOf", "items"}:
            named = {"title": value.get("name"), "description": value.get("description")}
            inner = _inner(value, key)
            return {name: text for name, text in named.items() if text and name not in inner} | _unwrapped(inner)
    if isinstance(value.get("name"), str) and not (value.keys() & KEYWORDS) - ANNOTATIONS:
        raise ValueError(f'json_schema has the name {quote(value["name"])} but holds no schema; give it under "schema"')
    return dict(value)


def _inner(value: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    inner = value[key]
    if not isinstance(inner, Mapping):
        raise ValueError(f"json_schema holds {quote(inner)} under {key!r}, which is not a JSON Schema object")
    return inner


def _with_types(schema: Any) -> Any:
    """Return a copy of a schema in which every part that leaves out its type has it; refuse misspelt keywords."""
    if not isinstance(schema, Mapping):
        return schema
    copy: dict[str, Any] = {}
    for key, value in schema.items():
        _check_keyword(key)
        if key in MAPPING_KEYWORDS and isinstance(value, Mapping):
            copy[key] = {name: _with_types(part) for name, part in value.items()}
        elif key in LIST_KEYWORDS and isinstance(value, list | tuple):
            copy[key] = [_with_types(part) for part in value]
        else:
            copy[key] = _with_types(value) if key in SCHEMA_KEYWORDS else value
    types = {TYPE_OF_KEYWORD[key] for key in copy.keys() & TYPE_OF_KEYWORD.keys()}
    if len(types) == 1 and not copy.keys() & {"type", "enum", "const", "$ref"}:
        return {"type": types.pop()} | copy
    return copy


def _check_keyword(key: object) -> None:
    if not isinstance(key, str):
        raise ValueError(f"json_schema has the key {quote(key)}, which is not a text")
    if key in KEYWORDS or key.startswith("x-"):
        return
    known = {word.lower(): word for word in KEYWORDS}
    close = difflib.get_close_matches(key.lower(), known, n=1, cutoff=LIKENESS)
    if close:
        raise ValueError(
            f"json_schema has the keyword {quote(key)}, which JSON Schema does not have; did you mean "
            f"{known[close[0]]!r}? An annotation of your own starts with x-"
        )


def _file_text(path: Path) -> str:
    try:
        return read_text_file(Path(os.path.expanduser(path)))
    except (OSError, UnicodeDecodeError) as error:
        why = reason_of(getattr(error, "strerror", None) or error)
        raise ValueError(f"json_schema names a file that cannot be read, {quote(str(path))}: {why}") from None
