"""Calls whose arguments stand between tags, each value as plain text: Qwen3.5 and Qwen3-Coder, GLM."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from tops_engine.answers.base import ToolCall
from tops_engine.conversation.tool_formats.base import (
    Rules,
    Schema,
    ToolFormat,
    choices,
    properties_of,
    takes_text,
    value_of,
    with_definitions,
)


class QwenXML(ToolFormat):
    """Tags with names::

    <tool_call>
    <function=crop>
    <parameter=left>
    0.5
    </parameter>
    </function>
    </tool_call>
    """

    name = "qwen_xml"
    families = "Qwen3.5, Qwen3-Coder"
    begin, end = "<tool_call>", "</tool_call>"
    result_marks = ("<tool_response>", "</tool_response>")
    between = "\n"

    def is_in(self, template: str) -> bool:
        return "<function=" in template

    def write(self, calls: Sequence[Mapping[str, Any]]) -> str:
        return self.between.join(map(self._write, calls))

    def _write(self, call: Mapping[str, Any]) -> str:
        arguments = (
            f"<parameter={name}>\n{_plain(value)}\n</parameter>\n" for name, value in call["arguments"].items()
        )
        return f"{self.begin}\n<function={call['name']}>\n{''.join(arguments)}</function>\n{self.end}"

    def read(self, text: str, parameters: Mapping[str, Schema]) -> list[ToolCall]:
        whole = re.fullmatch(r"\s*<function=([^>\n]+)>(.*?)(?:</function>)?\s*", text, re.DOTALL)
        if whole is None:
            raise ValueError
        name = whole[1].strip()
        found = re.findall(r"<parameter=([^>\n]+)>\n?(.*?)\n?(?:</parameter>|(?=<parameter=)|\Z)", whole[2], re.DOTALL)
        left = re.sub(r"<parameter=[^>\n]+>.*?(?:</parameter>|(?=<parameter=)|\Z)", "", whole[2], flags=re.DOTALL)
        if left.strip():
            raise ValueError
        return [_call(name, found, parameters)]

    def rule(self, name: str, parameters: Schema, rules: Rules) -> str:
        def argument(key: str, schema: Schema) -> str:
            opening = rules.text(f"<parameter={key}>\n")
            return f"{opening} {_value(schema, parameters, rules, chr(10) + '</parameter>')} {rules.text(chr(10))}"

        arguments = _arguments(parameters, rules, argument)
        return f"{rules.text(f'{chr(10)}<function={name}>{chr(10)}')} {arguments} {rules.text(f'</function>{chr(10)}')}"


class GLM(ToolFormat):
    """Pairs of tags for keys and values::

    <tool_call>crop
    <arg_key>left</arg_key>
    <arg_value>0.5</arg_value>
    </tool_call>
    """

    name = "glm"
    families = "GLM-4.1V, GLM-4.5V, GLM-4.6V"
    begin, end = "<tool_call>", "</tool_call>"
    other_marks = ("<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>")
    result_marks = ("<tool_response>", "</tool_response>")
    between = "\n"

    def is_in(self, template: str) -> bool:
        return "<arg_key>" in template

    def write(self, calls: Sequence[Mapping[str, Any]]) -> str:
        return self.between.join(map(self._write, calls))

    def _write(self, call: Mapping[str, Any]) -> str:
        arguments = (
            f"<arg_key>{name}</arg_key>\n<arg_value>{_json(value)}</arg_value>\n"
            for name, value in call["arguments"].items()
        )
        return f"{self.begin}{call['name']}\n{''.join(arguments)}{self.end}"

    def read(self, text: str, parameters: Mapping[str, Schema]) -> list[ToolCall]:
        name, _, rest = text.partition("<arg_key>")
        pair = r"\s*<arg_key>(.*?)</arg_key>\s*<arg_value>(.*?)</arg_value>\s*"
        rest = f"<arg_key>{rest}" if rest else ""
        if not name.strip() or "\n" in name.strip() or re.sub(pair, "", rest, flags=re.DOTALL):
            raise ValueError
        return [_call(name.strip(), re.findall(pair, rest, re.DOTALL), parameters)]

    def rule(self, name: str, parameters: Schema, rules: Rules) -> str:
        def argument(key: str, schema: Schema) -> str:
            around = [rules.mark("<arg_key>"), rules.text(key), rules.mark("</arg_key>"), rules.text("\n")]
            value = _value(schema, parameters, rules, "</arg_value>")
            return " ".join([*around, rules.mark("<arg_value>"), value, rules.text("\n")])

        return f"{rules.text(name + chr(10))} {_arguments(parameters, rules, argument)}"


def _arguments(parameters: Schema, rules: Rules, argument: Any) -> str:
    """Return the grammar of the arguments, in the order of the schema; those that are not required may be left out."""
    properties, required = properties_of(parameters)
    named = {key: rules.named(argument(key, schema)) for key, schema in properties.items()}
    return " ".join(rule if key in required else f"{rule}?" for key, rule in named.items())


def _value(schema: Schema, parameters: Schema, rules: Rules, end: str) -> str:
    """Return the grammar of a value and the tag behind it."""
    if takes_text(schema):
        return rules.until(end)
    listed = choices(schema)
    if listed:
        values = " | ".join(rules.text(_json(value)) for value in listed)
    elif schema.get("type") == "boolean":
        # Templates write Python's words, models often those of JSON.
        values = " | ".join(map(rules.text, ("true", "false", "True", "False")))
    else:
        values = rules.json(with_definitions(schema, parameters))
    return f"{rules.named(values)} {rules.mark(end)}"


def _call(name: str, arguments: Sequence[tuple[str, str]], parameters: Mapping[str, Schema]) -> ToolCall:
    properties, _ = properties_of(parameters.get(name, {}))
    read = {key.strip(): value_of(text, properties.get(key.strip(), {})) for key, text in arguments}
    return ToolCall(name=name, arguments=read)


def _json(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _plain(value: Any) -> str:
    """Return a value as the templates of Qwen write it: lists and objects as JSON, other values as Python does."""
    return _json(value) if isinstance(value, list | dict) else str(value)
