"""What a format of function calls has to define, and the texts of values in it."""

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol

from tops_engine.answers.base import ToolCall

Schema = Mapping[str, Any]

#: How JSON and Python write the values that have names.
CONSTANTS: dict[str, Any] = {"true": True, "false": False, "null": None, "True": True, "False": False, "None": None}


class Rules(Protocol):
    """Collects the rules of a grammar; the texts that the methods return are parts of a rule."""

    def text(self, text: str) -> str:
        """Return what stands for a text."""

    def mark(self, mark: str) -> str:
        """Return what stands for a mark: one token where the tokenizer has one, otherwise its text."""

    def until(self, mark: str) -> str:
        """Return what stands for any text and the first mark after it."""

    def pattern(self, pattern: str) -> str:
        """Return what stands for a regular expression."""

    def json(self, schema: Schema) -> str:
        """Return what stands for a value as JSON."""

    def named(self, rule: str) -> str:
        """Return the name of a new rule, for what is used more than once or repeated."""


class ToolFormat(ABC):
    """How the models of some families write function calls.

    Attributes
    ----------
    name : what the documentation calls the format.
    families : who writes it, for the documentation.
    begin, end : the marks around a call. None ends a call where the next one begins, or with the answer.
    other_marks : more texts that are single special tokens in some tokenizers and belong to a call.
    result_marks : texts that a tool's result must not hold, because they would end it.
    between : the text between two calls with marks of their own.
    opening, separator, closing : of a list of several calls between one pair of marks; None if each call has its own.
    is_json : whether the arguments are JSON, so that long texts in them can be ended.
    """

    name: ClassVar[str]
    families: ClassVar[str]
    begin: ClassVar[str]
    end: ClassVar[str | None]
    other_marks: ClassVar[tuple[str, ...]] = ()
    result_marks: ClassVar[tuple[str, ...]] = ()
    between: ClassVar[str] = ""
    opening: ClassVar[str | None] = None
    separator: ClassVar[str] = ", "
    closing: ClassVar[str] = "]"
    is_json: ClassVar[bool] = False

    @abstractmethod
    def is_in(self, template: str) -> bool:
        """Return whether a chat template is one of a model that writes this format."""

    @abstractmethod
    def write(self, calls: Sequence[Mapping[str, Any]]) -> str:
        """Return calls, each with a name and arguments, as the model writes them."""

    @abstractmethod
    def read(self, text: str, parameters: Mapping[str, Schema]) -> list[ToolCall]:
        """Return the calls in the text between two marks.

        Parameters
        ----------
        parameters : the JSON Schema of the arguments of each function, by its name.

        Raises
        ------
        ValueError, TypeError, KeyError, SyntaxError, RecursionError, MemoryError
            If the text is no call.
        """

    @abstractmethod
    def rule(self, name: str, parameters: Schema, rules: Rules) -> str:
        """Return the grammar of a call of one function, without the marks around it."""

    def for_template(self, messages: Sequence[dict[str, Any]], template: str) -> list[dict[str, Any]]:
        """Return messages as the chat template of the format takes them."""
        return list(messages)

    @property
    def marks(self) -> tuple[str, ...]:
        """All texts of a call that may be single tokens."""
        return tuple(mark for mark in (self.begin, self.end, *self.other_marks) if mark is not None)


def value_of(text: str, schema: Schema) -> Any:
    """Return the value that a text without quotes stands for, by the schema of an argument.

    A text stays a text where the schema allows nothing else, and where it is no value of another type.
    """
    if _kinds(schema) == {"string"}:
        return text
    stripped = text.strip()
    if stripped in CONSTANTS:
        value = CONSTANTS[stripped]
    else:
        try:
            value = json.loads(stripped)
        except ValueError:
            return text
    return value if not _kinds(schema) or _kind(value) in _kinds(schema) or "string" not in _kinds(schema) else text


def takes_text(schema: Schema) -> bool:
    """Return whether an argument is a text and nothing else, and not one of a few."""
    return _kinds(schema) == {"string"} and not {"enum", "const"} & schema.keys()


def choices(schema: Schema) -> list[Any]:
    """Return the values that a schema lists; empty if it lists none."""
    values = schema.get("enum", [schema["const"]] if "const" in schema else [])
    return list(values) if isinstance(values, list | tuple) else []


def properties_of(parameters: Schema) -> tuple[dict[str, Schema], set[str]]:
    """Return the schema of each argument, and the names of those that are required."""
    properties = parameters.get("properties")
    properties = properties if isinstance(properties, Mapping) else {}
    required = parameters.get("required")
    names = set(required) if isinstance(required, list | tuple) else set()
    return {str(name): value if isinstance(value, Mapping) else {} for name, value in properties.items()}, names


def with_definitions(schema: Schema, parameters: Schema) -> Schema:
    """Return the schema of an argument with the definitions that it may refer to."""
    shared = {name: parameters[name] for name in ("$defs", "definitions") if name in parameters}
    return {**shared, **schema}


def _kinds(schema: Schema) -> set[str]:
    """Return the types of values that a schema allows; empty if it does not say."""
    given = schema.get("type")
    if isinstance(given, str):
        return {given}
    if isinstance(given, list | tuple):
        return {kind for kind in given if isinstance(kind, str)}
    if values := choices(schema):
        return {_kind(value) for value in values}
    options = schema.get("anyOf") or schema.get("oneOf")
    if isinstance(options, list | tuple) and all(isinstance(option, Mapping) for option in options):
        kinds = [_kinds(option) for option in options]
        return set().union(*kinds) if all(kinds) else set()
    return set()


def _kind(value: Any) -> str:
    kinds = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array", dict: "object"}
    return kinds.get(type(value), "null")
