"""Calls as JSON objects between two marks: Hermes and Qwen, InternLM."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from tops_engine.answers.base import ToolCall
from tops_engine.conversation.tool_formats.base import Rules, Schema, ToolFormat


class Hermes(ToolFormat):
    """One JSON object between two marks::

    <tool_call>
    {"name": "crop", "arguments": {"left": 0.5}}
    </tool_call>
    """

    name = "hermes"
    families = "Qwen2-VL, Qwen2.5-VL, Qwen3-VL, InternVL over Qwen; every model whose template knows no functions"
    begin, end = "<tool_call>", "</tool_call>"
    result_marks: ClassVar[tuple[str, ...]] = ("<tool_response>", "</tool_response>")
    between = "\n"
    is_json = True
    key = "arguments"

    def is_in(self, template: str) -> bool:
        return self.begin in template and "arguments" in template

    def write(self, calls: Sequence[Mapping[str, Any]]) -> str:
        bodies = (json.dumps({"name": call["name"], self.key: call["arguments"]}, ensure_ascii=False) for call in calls)
        return self.between.join(f"{self.begin}\n{body}\n{self.end}" for body in bodies)

    def read(self, text: str, parameters: Mapping[str, Schema]) -> list[ToolCall]:
        return [json_call(json.loads(text))]

    def rule(self, name: str, parameters: Schema, rules: Rules) -> str:
        opening = rules.text(f'\n{{"name": {json.dumps(name, ensure_ascii=False)}, "{self.key}": ')
        return f"{opening} {rules.json(parameters)} {rules.text(CLOSING)}"


CLOSING = "}\n"


class InternLM(Hermes):
    """The same with other marks, and ``parameters`` for the arguments."""

    name = "internlm"
    families = "InternVL over InternLM, Intern-S1"
    begin, end = "<|action_start|><|plugin|>", "<|action_end|>"
    other_marks = ("<|action_start|>", "<|plugin|>")
    result_marks = ()
    between = ""
    key = "parameters"

    def is_in(self, template: str) -> bool:
        return "<|action_start|>" in template


def json_call(call: Any) -> ToolCall:
    """Return a call that was written as a JSON object; the arguments may be an object, or JSON text of one.

    Raises
    ------
    ValueError, TypeError, KeyError
        If it is none.
    """
    arguments = call["arguments"] if "arguments" in call else call["parameters"]
    return ToolCall(name=call["name"], arguments=json.loads(arguments) if isinstance(arguments, str) else arguments)
