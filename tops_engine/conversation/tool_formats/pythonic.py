"""Calls as Python writes them: LFM2."""

import ast
import json
from collections.abc import Mapping, Sequence
from typing import Any

from tops_engine.answers.base import ToolCall
from tops_engine.conversation.tool_formats.base import CONSTANTS, Rules, Schema, ToolFormat
from tops_engine.conversation.tool_formats.notation import Notation, members_rule

# Texts as Python and as JSON write them; longer calls are no calls.
TEXTS = r"""'([^'\\\n]|\\['"\\nrt])*'|"([^"\\\n]|\\['"\\nrt])*\""""
MAX_LENGTH = 100_000


def _literal(value: Any, rules: Rules) -> str:
    forms = [repr(value)] + ([json.dumps(value, ensure_ascii=False)] if isinstance(value, str) else [])
    return rules.named(" | ".join(map(rules.text, dict.fromkeys(forms))))


NOTATION = Notation(
    text=lambda rules: rules.pattern(TEXTS),
    written=_literal,
    key=lambda name, rules: f"{_literal(name, rules)} {rules.text(': ')}",
    separator=", ",
    constants={"boolean": ("True", "False", "true", "false"), "null": ("None", "null")},
)


class Pythonic(ToolFormat):
    """``<|tool_call_start|>[crop(left=0.5, side='top'), count()]<|tool_call_end|>``"""

    name = "pythonic"
    families = "LFM2-VL, LFM2.5-VL"
    begin, end = "<|tool_call_start|>", "<|tool_call_end|>"
    result_marks = ("<|tool_response_start|>", "<|tool_response_end|>")
    opening = "["

    def is_in(self, template: str) -> bool:
        return self.begin in template or "<|tool_list_start|>" in template or "List of tools: " in template

    def write(self, calls: Sequence[Mapping[str, Any]]) -> str:
        written = (
            f"{call['name']}({', '.join(f'{name}={value!r}' for name, value in call['arguments'].items())})"
            for call in calls
        )
        return f"{self.begin}[{', '.join(written)}]{self.end}"

    def read(self, text: str, parameters: Mapping[str, Schema]) -> list[ToolCall]:
        if len(text) > MAX_LENGTH:
            raise ValueError
        read = ast.parse(text.strip(), mode="eval").body
        calls = read.elts if isinstance(read, ast.List | ast.Tuple) else [read]
        return [_call(call) for call in calls]

    def rule(self, name: str, parameters: Schema, rules: Rules) -> str:
        # Arguments have bare names; keys of dictionaries are texts.
        arguments = members_rule(parameters, NOTATION, rules, lambda argument, _: rules.text(f"{argument}="))
        return f"{rules.text(f'{name}(')} {arguments} {rules.text(')')}"


def _call(call: ast.expr) -> ToolCall:
    if not isinstance(call, ast.Call) or call.args or any(keyword.arg is None for keyword in call.keywords):
        raise ValueError
    arguments = {str(keyword.arg): _value(keyword.value) for keyword in call.keywords}
    return ToolCall(name=ast.unparse(call.func), arguments=arguments)


def _value(node: ast.expr) -> Any:
    """Return the value of a literal; the words of JSON are allowed."""
    if isinstance(node, ast.Name):
        return CONSTANTS[node.id]
    if isinstance(node, ast.List | ast.Tuple):
        return [_value(item) for item in node.elts]
    if isinstance(node, ast.Dict):
        pairs = zip(node.keys, node.values, strict=True)
        return {_key(key): _value(value) for key, value in pairs}
    value = ast.literal_eval(node)
    if not isinstance(value, str | int | float | bool | None):
        raise ValueError
    return value


def _key(node: ast.expr | None) -> str:
    if not isinstance(node, ast.Constant) or not isinstance(node.value, str):
        raise ValueError
    return node.value
