"""The grammar of values in a notation that is not JSON, from their JSON Schema."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tops_engine.conversation.tool_formats.base import Rules, Schema, choices, properties_of, with_definitions

# How deep values of an unknown type, or that refer to themselves, may lie inside each other.
MAX_DEPTH = 4
MAX_ITEMS = 16


@dataclass(frozen=True)
class Notation:
    """How values are written.

    Attributes
    ----------
    text : the grammar of any text, with its quotes.
    written : a value of an ``enum`` or ``const``.
    key : a key of an object, with what follows it.
    separator : between items.
    constants : the words for "boolean" and "null".
    is_sorted : whether the keys of an object stand in alphabetical order.
    """

    text: Callable[[Rules], str]
    written: Callable[[Any, Rules], str]
    key: Callable[[str, Rules], str]
    separator: str
    constants: Mapping[str, tuple[str, ...]]
    is_sorted: bool = False


NUMBERS = {"integer": r"-?(0|[1-9][0-9]{0,14})", "number": r"-?(0|[1-9][0-9]{0,14})(\.[0-9]{1,15})?"}


def value_rule(schema: Schema, notation: Notation, rules: Rules, depth: int = 0) -> str:
    """Return the name of the rule for a value.

    Followed are ``enum``, ``const``, ``type``, ``anyOf``, ``oneOf``, ``properties``, ``required``, ``items`` and
    references to definitions; bounds of numbers and texts are left to the function.
    """
    schema = _resolved(schema)
    if listed := choices(schema):
        return rules.named(" | ".join(notation.written(value, rules) for value in listed))
    if depth > MAX_DEPTH:
        return rules.named(notation.text(rules))
    options = schema.get("anyOf") or schema.get("oneOf")
    if isinstance(options, list | tuple) and options:
        inner = [with_definitions(option if isinstance(option, Mapping) else {}, schema) for option in options]
        return rules.named(" | ".join(value_rule(option, notation, rules, depth + 1) for option in inner))
    given = schema.get("type")
    kinds = [given] if isinstance(given, str) else list(given) if isinstance(given, list | tuple) else []
    kinds = kinds or ["string", "number", "boolean", "null", *(["array", "object"] if depth < MAX_DEPTH else [])]
    return rules.named(" | ".join(_kind_rule(str(kind), schema, notation, rules, depth) for kind in kinds))


def _kind_rule(kind: str, schema: Schema, notation: Notation, rules: Rules, depth: int) -> str:
    if kind in NUMBERS:
        return rules.pattern(NUMBERS[kind])
    if kind in notation.constants:
        return rules.named(" | ".join(map(rules.text, notation.constants[kind])))
    if kind == "array":
        items = schema.get("items")
        items = with_definitions(items if isinstance(items, Mapping) else {}, schema)
        item = value_rule(items, notation, rules, depth + 1)
        more = f"({rules.text(notation.separator)} {item}){{0,{MAX_ITEMS - 1}}}"
        return f"{rules.text('[')} ({item} {more})? {rules.text(']')}"
    if kind == "object":
        return f"{rules.text('{')} {members_rule(schema, notation, rules, depth=depth + 1)} {rules.text('}')}"
    return notation.text(rules)


def members_rule(
    schema: Schema, notation: Notation, rules: Rules, key: Callable[[str, Rules], str] | None = None, depth: int = 0
) -> str:
    """Return the grammar of the members of an object, or of the arguments of a call, in the order of the schema.

    ``key`` is how a name is written, if not as the notation says.
    """
    key = key or notation.key
    properties, required = properties_of(schema)
    if notation.is_sorted:
        properties = dict(sorted(properties.items()))
    if depth > MAX_DEPTH:
        return ""
    members = [
        f"{key(name, rules)} {value_rule(with_definitions(value, schema), notation, rules, depth)}"
        for name, value in properties.items()
    ]
    needed = [name in required for name in properties]
    separator = rules.text(notation.separator)
    # From the last member backwards: what may follow a member, and what may begin the list.
    following = beginning = ""
    for member, is_needed in zip(reversed(members), reversed(needed), strict=True):
        behind, first = f"{separator} {member} {following}", f"{member} {following}"
        following = rules.named(behind) if is_needed else rules.named(_either(behind, following))
        beginning = rules.named(first) if is_needed else rules.named(_either(first, beginning))
    return beginning


def _either(first: str, second: str) -> str:
    """Return the grammar of one or the other; an empty second one stands for nothing."""
    return f"{first} | {second}" if second else f"({first})?"


def _resolved(schema: Schema) -> Schema:
    """Return the definition that a schema refers to, with the other definitions; itself if it refers to none."""
    reference = schema.get("$ref")
    if not isinstance(reference, str):
        return schema
    for group in ("$defs", "definitions"):
        definitions = schema.get(group)
        name = reference.removeprefix(f"#/{group}/")
        if isinstance(definitions, Mapping) and isinstance(definitions.get(name), Mapping):
            return with_definitions(definitions[name], schema)
    return {}
