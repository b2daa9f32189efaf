"""The grammar of the JSON that a schema allows, and whether an answer can follow a grammar.

Grammars are Lark texts in the dialect of llguidance (an optional package), which may hold ``%json {...}`` schemas.
"""

import json
from typing import Any

from tops_engine.errors import InvalidInput, MissingDependency, reason_of

# The most digits of a number: this many are exact in a float64.
MAX_NUMBER = 10**15
MAX_ITEMS = 16

# Characters of a text with a pattern or format that has no maxLength. Such a text may be impossible to end at most
# places, so that a share of the tokens alone would not end it. It is raised for patterns that need more.
MAX_PATTERN = 128
LONGEST_PATTERN = 4096

# Formats of JSON Schema the grammar library knows; any other is an annotation, as the standard says.
FORMATS = frozenset("date-time time date duration email hostname ipv4 ipv6 uri uuid unknown".split())

# As json.dumps writes it, which is what models have read.
JSON_STYLE: dict[str, Any] = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


def check_grammar(grammar: str) -> None:
    """Check that answers can follow a grammar.

    Raises
    ------
    InvalidInput
        If they cannot.
    MissingDependency
        If llguidance is not installed.
    """
    fault = _fault_of(grammar)
    if fault is not None:
        raise InvalidInput(f"The grammar cannot be followed: {reason_of(fault)}.")


def _fault_of(grammar: str) -> str | None:
    """Return why a grammar cannot be followed, None if it can."""
    try:
        from llguidance import LLMatcher
    except ImportError as error:
        raise MissingDependency(
            "Answers by a schema or grammar need llguidance: pip install 'llguidance>=1.4'."
        ) from error
    is_error, messages = LLMatcher.validate_grammar_with_warnings(grammar)
    return str(messages[0]) if is_error else None


def json_grammar(schema: str | dict[str, Any]) -> str:
    """Return the grammar of the JSON that a schema, as text or read, allows, with bounds where the schema has none.

    The bounds let a model that never stops by itself complete an answer, if ``max_tokens`` suffices for them: lists
    hold 16 items, numbers 15 digits, texts with a pattern or format 128 characters (or as many as the pattern needs),
    objects only the properties that they name, and objects that name none 16. Bounds of the schema are kept. Not
    bounded is how deep values lie inside of each other, where a schema refers to itself or leaves values open.
    """
    return f"start: {json_rule(schema)}"


def json_rule(schema: str | dict[str, Any], lenient: bool = False) -> str:
    """Return the same as :func:`json_grammar`, as a part of a rule.

    ``lenient`` leaves out keywords that cannot be followed.
    """
    bounded = _bounded(json.loads(schema) if isinstance(schema, str) else schema)
    bounded.pop("$schema", None)
    return "%json " + json.dumps(bounded | {"x-guidance": JSON_STYLE | {"lenient": lenient}})


# Where schemas stand inside a schema.
_IN_VALUE = ("items", "additionalProperties")
_IN_LIST = ("anyOf", "oneOf", "allOf", "prefixItems")
_IN_MAPPING = ("properties", "patternProperties", "$defs", "definitions")


def _bounded(schema: Any, closed: bool = True) -> Any:
    """Return a copy of a schema with bounds where it has none.

    Parts of an ``allOf`` cannot be closed to other properties, since each part sees all of them.
    """
    if not isinstance(schema, dict):
        return schema
    copy: dict[str, Any] = {}
    for key, value in schema.items():
        if key in _IN_VALUE:
            copy[key] = _bounded(value)
        elif key in _IN_LIST and isinstance(value, list):
            copy[key] = [_bounded(part, key != "allOf") for part in value]
        elif key in _IN_MAPPING and isinstance(value, dict):
            copy[key] = {name: _bounded(part) for name, part in value.items()}
        elif key != "format" or not isinstance(value, str) or value in FORMATS:
            copy[key] = value
    if closed and "properties" in copy and "allOf" not in copy:
        copy.setdefault("additionalProperties", False)
    return _missing_bounds(copy) | copy


def _missing_bounds(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the bounds that a schema lacks for its own value."""
    bounds: dict[str, Any] = {}
    if _has_type(schema, "object") and not schema.keys() & {"properties", "allOf", "anyOf", "oneOf", "$ref"}:
        bounds["maxProperties"] = max(MAX_ITEMS, _number(schema, "minProperties") or 0)
    if _has_type(schema, "string") and {"pattern", "format"} & schema.keys() and "maxLength" not in schema:
        bounds |= _text_bound(schema)
    if _has_type(schema, "array"):
        first = schema.get("prefixItems")
        num_first = len(first) if isinstance(first, list) else 0
        bounds["maxItems"] = max(MAX_ITEMS, _number(schema, "minItems") or 0, num_first)
    if _has_type(schema, "integer", "number") and not {"enum", "const"} & schema.keys():
        low = _number(schema, "minimum", "exclusiveMinimum")
        high = _number(schema, "maximum", "exclusiveMaximum")
        if low is None and not {"minimum", "exclusiveMinimum"} & schema.keys():
            bounds["minimum"] = min(0, high or 0) - MAX_NUMBER
        if high is None and not {"maximum", "exclusiveMaximum"} & schema.keys():
            bounds["maximum"] = max(0, low or 0) + MAX_NUMBER
    return bounds


def _number(schema: dict[str, Any], *keywords: str) -> Any:
    """Return the first of the keywords that is a number; the grammar library refuses other values by name."""
    values = (schema.get(keyword) for keyword in keywords)
    return next((value for value in values if isinstance(value, int | float) and not isinstance(value, bool)), None)


def _text_bound(schema: dict[str, Any]) -> dict[str, int]:
    """Return the ``maxLength`` of a text with a pattern or format, so that some text remains possible."""
    keywords = {key: schema[key] for key in ("pattern", "format", "minLength") if key in schema}
    length = MAX_PATTERN
    while length <= LONGEST_PATTERN:
        bounded = json.dumps({"type": "string", **keywords, "maxLength": length})
        if _fault_of(f"start: %json {bounded}") is None:
            return {"maxLength": length}
        length *= 2
    return {}


def _has_type(schema: dict[str, Any], *names: str) -> bool:
    given = schema.get("type")
    return any(name in (given if isinstance(given, list) else [given]) for name in names)
