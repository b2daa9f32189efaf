"""Calls of Mistral's models: a list of JSON objects, or a name and JSON arguments."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from tops_engine.answers.base import ToolCall
from tops_engine.conversation.tool_formats.base import Rules, Schema, ToolFormat
from tops_engine.conversation.tool_formats.hermes import json_call


class _Mistral(ToolFormat):
    begin, end = "[TOOL_CALLS]", None
    other_marks = ("[ARGS]", "[CALL_ID]")
    result_marks = ("[TOOL_RESULTS]", "[/TOOL_RESULTS]", "[TOOL_CONTENT]")
    is_json = True

    def read(self, text: str, parameters: Mapping[str, Schema]) -> list[ToolCall]:
        # Both forms are read whatever the template says: checkpoints of one family differ.
        if text.lstrip().startswith(("[", "{")):
            read = json.loads(text)
            return [json_call(call) for call in (read if isinstance(read, list) else [read])]
        name, found, arguments = text.partition("[ARGS]")
        if not found and "{" in text:
            name, brace, rest = text.partition("{")
            arguments = brace + rest
        read = json.loads(arguments)
        return [ToolCall(name=name.partition("[CALL_ID]")[0].strip(), arguments={} if read is None else read)]

    def for_template(self, messages: Sequence[dict[str, Any]], template: str) -> list[dict[str, Any]]:
        """Give calls and results ids of nine letters and digits, which the templates demand."""
        written = []
        for message in messages:
            message = dict(message)
            if "tool_calls" in message:
                message["tool_calls"] = [{**call, "id": _short_id(call["id"])} for call in message["tool_calls"]]
            if "tool_call_id" in message:
                message["tool_call_id"] = _short_id(message["tool_call_id"])
            written.append(message)
        return written


class MistralList(_Mistral):
    """``[TOOL_CALLS] [{"name": "crop", "arguments": {"left": 0.5}}]`` and the end of the answer."""

    name = "mistral_list"
    families = "Pixtral, Mistral Small 3.1"
    opening, closing = " [", "]"

    def is_in(self, template: str) -> bool:
        return self.begin in template

    def write(self, calls: Sequence[Mapping[str, Any]]) -> str:
        bodies = [{"name": call["name"], "arguments": call["arguments"]} for call in calls]
        return f"{self.begin} {json.dumps(bodies, ensure_ascii=False)}"

    def rule(self, name: str, parameters: Schema, rules: Rules) -> str:
        opening = rules.text(f'{{"name": {json.dumps(name, ensure_ascii=False)}, "arguments": ')
        # Checkpoints that have read ids in earlier calls write one.
        call_id = rules.named(f"{rules.text(', ' + chr(34) + 'id' + chr(34) + ': ' + chr(34))} {rules.pattern(ID)}")
        return f"{opening} {rules.json(parameters)} {call_id}? {rules.text('}')}"


ID = '[a-zA-Z0-9]{9}"'


class MistralNamed(_Mistral):
    """``[TOOL_CALLS]crop[ARGS]{"left": 0.5}``, once for each call."""

    name = "mistral_named"
    families = "Mistral Small 3.2, Magistral, Ministral 3"

    def is_in(self, template: str) -> bool:
        return self.begin in template and "[ARGS]" in template

    def write(self, calls: Sequence[Mapping[str, Any]]) -> str:
        written = ((call["name"], json.dumps(call["arguments"], ensure_ascii=False)) for call in calls)
        return "".join(f"{self.begin}{name}[ARGS]{arguments}" for name, arguments in written)

    def rule(self, name: str, parameters: Schema, rules: Rules) -> str:
        return f"{rules.text(name)} {rules.mark('[ARGS]')} {rules.json(parameters)}"


def _short_id(given: Any) -> str:
    text = str(given)
    is_short = len(text) == 9 and text.isascii() and text.isalnum()
    return text if is_short else hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:9]
