"""Function calls in an answer: the grammar that makes them valid, and their reading from streamed text."""

import json
from collections.abc import Mapping
from typing import Any

from tops_engine.answers.base import InvalidToolCall, ToolCall
from tops_engine.conversation.tools import BEGIN, END, Tools
from tops_engine.generation.constraint import json_rule

# The most function calls in an answer, for a model that never stops by itself.
MAX_CALLS = 8


def tool_grammar(tools: Tools, tokenizer: Any, json_schema: str | None = None) -> str:
    """Return the grammar of the answers of a model that has tools, as Lark text.

    Parameters
    ----------
    tokenizer : the checkpoint's; some have tokens for the marks of a call.
    json_schema : the schema of an answer that calls no function.
    """
    begin, end = (_mark(tokenizer, text) for text in (BEGIN, END))
    answer = "TEXT" if json_schema is None else json_rule(json_schema)
    # A mark that is a single token is not part of a text.
    spelled = begin.startswith('"')
    text = "TEXT: /(.|\\n)*/" + (f" & ~/(.|\\n)*{BEGIN}(.|\\n)*/" if spelled else "")
    choice = tools.choice if tools.functions else "none"
    if choice == "none":
        return f"start: {answer}\n{text}"
    body = f"body: {_bodies(tools)}"
    if choice == "auto" and json_schema is None:
        # The text before a call is not constrained; the mark that begins one switches to its grammar.
        lazy = "[lazy]" if spelled else ""
        several = f"{{0,{MAX_CALLS}}}" if tools.parallel else "?"
        rules = [f"start: (said body {end}){several} TEXT", f"said{lazy}: ANY {begin}", "ANY: /(.|\\n)*/"]
        return "\n".join([*rules, body, text])
    several = f' ("\\n" call){{0,{MAX_CALLS - 1}}}' if tools.parallel and choice in ("auto", "required") else ""
    otherwise = f" | {answer}" if choice == "auto" else ""
    return "\n".join([f"start: call{several}{otherwise}", f"call: {begin} body {end}", body])


def _bodies(tools: Tools) -> str:
    """Return the alternatives of the rule for the text between the marks: one for each function that may be called."""
    alternatives = []
    for function in (tool["function"] for tool in tools.functions):
        if tools.choice in ("auto", "required", function["name"]):
            name = json.dumps(function["name"], ensure_ascii=False)
            opening = _quoted(f'\n{{"name": {name}, "arguments": ')
            alternatives.append(f"{opening} {arguments_rule(function)} {_quoted(CLOSING)}")
    return "\n  | ".join(alternatives)


CLOSING = "}\n"


def arguments_rule(function: Mapping[str, Any]) -> str:
    """Return the part of a rule for the arguments of a function.

    A function without parameters takes an empty object. Keywords that a grammar cannot follow, such as
    ``uniqueItems``, are left out: the function checks its arguments.
    """
    schema = {"type": "object", "properties": {}} | dict(function.get("parameters") or {})
    return json_rule(schema, lenient=True)


def _mark(tokenizer: Any, text: str) -> str:
    """Return a mark as a grammar names it: as a token where the tokenizer has one for it, else as a string."""
    return text if text in tokenizer.get_added_vocab() else _quoted(text)


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


class CallReader:
    """The separation of function calls from text as it comes.

    Parameters
    ----------
    continues : whether the text continues another one; it then keeps its white space.

    Attributes
    ----------
    calls, invalid_calls : those that are complete, and those that are not calls.
    text : everything outside of calls.
    """

    def __init__(self, continues: bool = False) -> None:
        self.calls: list[ToolCall] = []
        self.invalid_calls: list[InvalidToolCall] = []
        self.text = ""
        self._pending = ""
        self._in_call = False
        self._continues = continues

    def push(self, piece: str) -> str:
        """Take new text; return the part that certainly belongs to no call."""
        self._pending += piece
        shown = ""
        while True:
            mark = END if self._in_call else BEGIN
            before, found, rest = self._pending.partition(mark)
            if not found:
                break
            self._pending = rest
            if self._in_call:
                self._read_call(before)
            else:
                shown += self._show(before.rstrip())
            self._in_call = not self._in_call
        if not self._in_call:
            certain = len(self._pending) - _num_withheld(self._pending)
            text, self._pending = self._pending[:certain], self._pending[certain:]
            shown += self._show(text)
        return shown

    def finish(self) -> str:
        """End the answer; return the text held back."""
        if not self._in_call:
            return self._show(self._pending if self._pending.strip() or not self.calls else "")
        self.invalid_calls.append(InvalidToolCall(text=self._pending.strip(), error="The call was cut off."))
        return ""

    def _show(self, text: str) -> str:
        # An answer that begins with a call has no text before it; the line break after a call belongs to the call.
        text = text if self.text or self._continues else text.lstrip()
        self.text += text
        return text

    def _read_call(self, text: str) -> None:
        try:
            call = json.loads(text)
            self.calls.append(ToolCall(name=call["name"], arguments=call["arguments"]))
        except (ValueError, TypeError, KeyError):
            self.invalid_calls.append(InvalidToolCall(text=text.strip(), error="The call is not a name and arguments."))


def _num_withheld(text: str) -> int:
    """Return the length of the end of the text that may belong to a call: white space and the beginning of a mark."""
    begun = max((length for length in range(1, len(BEGIN)) if text.endswith(BEGIN[:length])), default=0)
    before = text[: len(text) - begun]
    return begun + len(before) - len(before.rstrip())
