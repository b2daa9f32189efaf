"""Calls of Gemma 4: a name and arguments with bare keys and quotes that are a token."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from tops_engine.answers.base import ToolCall
from tops_engine.conversation.tool_formats.base import CONSTANTS, Rules, Schema, ToolFormat
from tops_engine.conversation.tool_formats.notation import Notation, members_rule

QUOTE = '<|"|>'
MAX_DEPTH = 64


def _quoted(value: Any, rules: Rules) -> str:
    if isinstance(value, str):
        return f"{rules.mark(QUOTE)} {rules.text(value)} {rules.mark(QUOTE)}"
    return rules.text(_written(value))


NOTATION = Notation(
    text=lambda rules: f"{rules.mark(QUOTE)} {rules.until(QUOTE)}",
    written=_quoted,
    key=lambda name, rules: rules.text(f"{name}:"),
    separator=",",
    constants={"boolean": ("true", "false"), "null": ("null",)},
    is_sorted=True,
)


class Gemma(ToolFormat):
    """``<|tool_call>call:crop{left:0.5,side:<|"|>top<|"|>}<tool_call|>``"""

    name = "gemma"
    families = "Gemma 4"
    begin, end = "<|tool_call>", "<tool_call|>"
    other_marks = (QUOTE,)
    result_marks = (QUOTE, "<|tool_response>", "<tool_response|>")

    def is_in(self, template: str) -> bool:
        return self.begin in template

    def write(self, calls: Sequence[Mapping[str, Any]]) -> str:
        return "".join(f"{self.begin}call:{call['name']}{{{_members(call['arguments'])}}}{self.end}" for call in calls)

    def read(self, text: str, parameters: Mapping[str, Schema]) -> list[ToolCall]:
        whole = re.fullmatch(r"\s*call:\s*([^\s{]+)\s*(\{.*\})\s*", text, re.DOTALL)
        if whole is None:
            raise ValueError
        return [ToolCall(name=whole[1], arguments=_Reader(whole[2]).whole())]

    def rule(self, name: str, parameters: Schema, rules: Rules) -> str:
        return f"{rules.text(f'call:{name}{{')} {members_rule(parameters, NOTATION, rules)} {rules.text('}')}"

    def for_template(self, messages: Sequence[dict[str, Any]], template: str) -> list[dict[str, Any]]:
        """Write results into the message with their calls, where all published templates of Gemma 4 read them."""
        if "tool_responses" not in template:
            return list(messages)
        written: list[dict[str, Any]] = []
        for message in messages:
            if message["role"] == "tool" and written and "tool_calls" in written[-1]:
                result = {"name": message["name"], "response": message["content"]}
                written[-1] = {**written[-1], "tool_responses": [*written[-1].get("tool_responses", ()), result]}
            else:
                written.append(dict(message))
        return written


def _members(values: Mapping[str, Any]) -> str:
    return ",".join(f"{name}:{_written(value)}" for name, value in sorted(values.items()))


def _written(value: Any) -> str:
    if isinstance(value, str):
        return f"{QUOTE}{value}{QUOTE}"
    if isinstance(value, Mapping):
        return f"{{{_members(value)}}}"
    if isinstance(value, list | tuple):
        return f"[{','.join(map(_written, value))}]"
    words = {True: "true", False: "false", None: "null"}
    return words[value] if value is None or isinstance(value, bool) else str(value)


class _Reader:
    """Reads the values of one call; a method raises ValueError where the text is not one."""

    def __init__(self, text: str) -> None:
        self._text, self._at = text, 0

    def whole(self) -> dict[str, Any]:
        value = self._object(0)
        if self._at != len(self._text):
            raise ValueError
        return value

    def _object(self, depth: int) -> dict[str, Any]:
        self._take("{")
        read: dict[str, Any] = {}
        while not self._begins("}"):
            key = self._quoted() or self._until(":")
            self._take(":")
            read[key] = self._value(depth + 1)
            self._comma("}")
        self._take("}")
        return read

    def _list(self, depth: int) -> list[Any]:
        self._take("[")
        read: list[Any] = []
        while not self._begins("]"):
            read.append(self._value(depth + 1))
            self._comma("]")
        self._take("]")
        return read

    def _value(self, depth: int) -> Any:
        if depth > MAX_DEPTH:
            raise ValueError
        if self._begins("{"):
            return self._object(depth)
        if self._begins("["):
            return self._list(depth)
        quoted = self._quoted()
        if quoted is not None:
            return quoted
        bare = self._until(",}]")
        if bare in CONSTANTS:
            return CONSTANTS[bare]
        try:
            return int(bare)
        except ValueError:
            return float(bare)

    def _quoted(self) -> str | None:
        for quote in (QUOTE, '"'):
            if self._begins(quote):
                end = self._text.index(quote, self._at + len(quote))
                text, self._at = self._text[self._at + len(quote) : end], end + len(quote)
                return text
        return None

    def _until(self, ends: str) -> str:
        begin = self._at
        while self._at < len(self._text) and self._text[self._at] not in ends:
            self._at += 1
        if not (bare := self._text[begin : self._at].strip()):
            raise ValueError
        return bare

    def _comma(self, end: str) -> None:
        if not self._begins(end):
            self._take(",")

    def _begins(self, text: str) -> bool:
        while self._at < len(self._text) and self._text[self._at].isspace():
            self._at += 1
        return self._text.startswith(text, self._at)

    def _take(self, text: str) -> None:
        if not self._begins(text):
            raise ValueError
        self._at += len(text)
