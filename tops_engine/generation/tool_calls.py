"""Function calls in an answer: the grammar that makes them valid, and their reading from streamed text."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from tops_engine.answers.base import InvalidToolCall, ToolCall
from tops_engine.conversation.tool_formats import DEFAULT, ToolFormat
from tops_engine.conversation.tools import Tools
from tops_engine.errors import InvalidInput, quote
from tops_engine.generation.grammars import check_grammar, json_rule

# The most function calls in an answer, for a model that never stops by itself.
MAX_CALLS = 8

#: What the readers of formats raise for a text that is no call.
NO_CALL = (ValueError, TypeError, KeyError, AttributeError, SyntaxError, RecursionError, MemoryError)


class GrammarRules:
    """The rules of a grammar, as Lark text in the dialect of llguidance.

    Parameters
    ----------
    tokenizer : the checkpoint's; some have tokens for the marks of a call.
    is_strict : refuse keywords of a schema that a grammar cannot follow, instead of leaving them out.
    """

    def __init__(self, tokenizer: Any, is_strict: bool = False) -> None:
        self.is_strict = is_strict
        self._tokens: Mapping[str, int] = tokenizer.get_added_vocab() if tokenizer is not None else {}
        self._names: dict[str, str] = {}
        self._lines: list[str] = []

    @property
    def lines(self) -> list[str]:
        return [*self._lines, "ANY: /(.|\\n)*/"]

    def text(self, text: str) -> str:
        return json.dumps(text, ensure_ascii=False)

    def mark(self, mark: str) -> str:
        """Return a mark as its tokens, where the tokenizer has them, else as a string."""
        if mark in self._tokens:
            return f"<[{self._tokens[mark]}]>"
        parts = re.findall(r"<\|[^<>]*\|>", mark)
        if len(parts) > 1 and "".join(parts) == mark:
            return " ".join(map(self.mark, parts))
        return self.text(mark)

    def is_spelled(self, mark: str) -> bool:
        """Return whether a mark is part of the text, because it is not one token."""
        return self.mark(mark).startswith('"')

    def until(self, mark: str) -> str:
        if self.is_spelled(mark):
            # The first place where the mark stands ends it.
            return self._named(f"[lazy]: /(.|\\n)*{_escaped(mark)}/")
        return self._named(f": ANY {self.mark(mark)}")

    def pattern(self, pattern: str) -> str:
        return self._named(f": /{pattern.replace('/', chr(92) + '/')}/")

    def json(self, schema: Mapping[str, Any]) -> str:
        return json_rule({"type": "object", "properties": {}} | dict(schema), lenient=not self.is_strict)

    def named(self, rule: str) -> str:
        return self._named(f": {rule}")

    def _named(self, definition: str) -> str:
        name = self._names.get(definition)
        if name is None:
            name = self._names[definition] = f"rule{len(self._names)}"
            self._lines.append(f"{name}{definition}")
        return name


def tool_grammar(
    tools: Tools, tokenizer: Any, json_schema: str | None = None, tool_format: ToolFormat = DEFAULT
) -> str:
    """Return the grammar of the answers of a model that has tools, as Lark text.

    Parameters
    ----------
    tokenizer : the checkpoint's; some have tokens for the marks of a call.
    json_schema : the schema of an answer that calls no function.
    tool_format : how the model writes calls.
    """
    rules = GrammarRules(tokenizer)
    begin = rules.mark(tool_format.begin)
    end = "" if tool_format.end is None else rules.mark(tool_format.end)
    answer = "TEXT" if json_schema is None else json_rule(json_schema)
    # A mark that is a single token is not part of a text.
    is_spelled = rules.is_spelled(tool_format.begin)
    text = "TEXT: /(.|\\n)*/" + (f" & ~/(.|\\n)*{_escaped(tool_format.begin)}(.|\\n)*/" if is_spelled else "")
    choice = tools.choice if tools.functions else "none"
    if choice == "none":
        return f"start: {answer}\n{text}"
    calls = _calls(tools, tool_format, rules)
    most = MAX_CALLS - 1 if tools.parallel and choice in ("auto", "required") and tool_format.opening is None else 0
    if choice == "auto" and json_schema is None:
        # The text before a call is not constrained; the mark that begins one switches to its grammar.
        lazy = "[lazy]" if is_spelled else ""
        if tool_format.end is None:
            start = f"start: TEXT | said {calls} {_repeated(f'{begin} {calls}', most)}"
        else:
            start = f"start: (said {calls} {end}){{0,{most + 1}}} TEXT"
        return "\n".join([start, f"said{lazy}: ANY {begin}", text, *rules.lines])
    between = rules.text(tool_format.between) if tool_format.between else ""
    otherwise = f" | {answer}" if choice == "auto" else ""
    start = f"start: call {_repeated(f'{between} call', most)}{otherwise}"
    return "\n".join([start, f"call: {begin} {calls} {end}", text, *rules.lines])


def _calls(tools: Tools, tool_format: ToolFormat, rules: GrammarRules) -> str:
    """Return the name of the rule for what stands between two marks: one call, or a list of them."""
    alternatives = []
    for function in (tool["function"] for tool in tools.functions):
        if tools.choice in ("auto", "required", function["name"]):
            alternatives.append(_call(function, tool_format, rules))
    one = rules.named("\n  | ".join(alternatives))
    if tool_format.opening is None:
        return one
    most = MAX_CALLS - 1 if tools.parallel and tools.choice in ("auto", "required") else 0
    separator, closing = rules.text(tool_format.separator), rules.text(tool_format.closing)
    others = _repeated(f"{separator} {one}", most)
    return rules.named(f"{rules.text(tool_format.opening)} {one} {others} {closing}")


def _repeated(rule: str, most: int) -> str:
    return f"({rule}){{0,{most}}}" if most else ""


def _call(function: Mapping[str, Any], tool_format: ToolFormat, rules: GrammarRules) -> str:
    rules.is_strict = function.get("strict") is True
    return tool_format.rule(function["name"], function.get("parameters") or {}, rules)


def check_parameters(function: Mapping[str, Any]) -> None:
    """Check that some arguments satisfy the parameters of a function.

    A function without parameters takes an empty object. Keywords that a grammar cannot follow, such as
    ``uniqueItems``, are left out unless the function is ``strict``: the function checks its arguments.

    Raises
    ------
    InvalidInput
        If none do.
    """
    rules = GrammarRules(None, is_strict=function.get("strict") is True)
    try:
        check_grammar(f"start: {rules.json(function.get('parameters') or {})}")
    except InvalidInput as error:
        raise InvalidInput(f"The parameters of the tool {quote(function['name'])} are unusable: {error}") from error


def _escaped(text: str) -> str:
    """Return a text as a regular expression between two slashes."""
    return re.sub(r"[\\/.|(){}\[\]*+?^$-]", r"\\\g<0>", text).replace("\n", "\\n")


class CallReader:
    """The separation of function calls from text as it comes.

    Parameters
    ----------
    continues : whether the text continues another one; it then keeps its white space.
    tool_format : how the model writes calls.
    tools : the functions; their schemas say what a text without quotes stands for.

    Attributes
    ----------
    calls, invalid_calls : those that are complete, and those that are not calls.
    text : everything outside of calls.
    """

    def __init__(self, continues: bool = False, tool_format: ToolFormat = DEFAULT, tools: Tools | None = None) -> None:
        self.calls: list[ToolCall] = []
        self.invalid_calls: list[InvalidToolCall] = []
        self.text = ""
        self._format = tool_format
        self._parameters = tools.parameters if tools is not None else {}
        self._pending = ""
        self._in_call = False
        self._continues = continues

    def push(self, piece: str) -> str:
        """Take new text; return the part that certainly belongs to no call."""
        self._pending += piece
        shown = ""
        begin, end = self._format.begin, self._format.end
        while True:
            before, found, rest = self._pending.partition((end or begin) if self._in_call else begin)
            if not found:
                break
            self._pending = rest
            if self._in_call:
                self._read_calls(before)
            else:
                shown += self._show(before.rstrip())
            # Without a mark of its own, a call ends where the next one begins.
            self._in_call = end is None or not self._in_call
        if not self._in_call:
            certain = len(self._pending) - _num_withheld(self._pending, begin)
            text, self._pending = self._pending[:certain], self._pending[certain:]
            shown += self._show(text)
        return shown

    def finish(self, is_cut: bool = True) -> str:
        """End the answer; return the text held back.

        Parameters
        ----------
        is_cut : whether the answer ended before the model ended it.
        """
        if not self._in_call:
            return self._show(self._pending if self._pending.strip() or not self.calls else "")
        if self._format.end is None and not is_cut:
            self._read_calls(self._pending)
        else:
            self.invalid_calls.append(InvalidToolCall(text=self._pending.strip(), error="The call was cut off."))
        return ""

    def _show(self, text: str) -> str:
        # An answer that begins with a call has no text before it; the line break after a call belongs to the call.
        text = text if self.text or self._continues else text.lstrip()
        self.text += text
        return text

    def _read_calls(self, text: str) -> None:
        try:
            self.calls += self._format.read(text, self._parameters)
        except NO_CALL:
            self.invalid_calls.append(InvalidToolCall(text=text.strip(), error="The call is not a name and arguments."))


def _num_withheld(text: str, begin: str) -> int:
    """Return the length of the end of the text that may belong to a call: white space and the beginning of a mark."""
    begun = max((length for length in range(1, len(begin)) if text.endswith(begin[:length])), default=0)
    before = text[: len(text) - begun]
    return begun + len(before) - len(before.rstrip())


def special_marks(tokenizer: Any, marks: Sequence[str]) -> dict[int, str]:
    """Return the marks that a tokenizer leaves out when it decodes a text without special tokens, by their ids."""
    special = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    ids = tokenizer.get_added_vocab()
    return {ids[mark]: mark for mark in marks if mark in special}
