"""Functions a model may call: how it is told about them, and what their calls and results look like in a prompt.

Where the checkpoint's chat template knows functions, it writes the prompt, and the model writes calls in the format of
the template (:mod:`tops_engine.conversation.tool_formats`). Any other model is told about functions in the system
message, and results come back in the user's turn between ``<tool_response>`` and ``</tool_response>``. Pictures stay
inside a result where the template takes them there; otherwise they follow in a user turn of their own.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tops_engine.conversation.tool_formats import ToolFormat
from tops_engine.errors import InvalidInput, listed, quote
from tops_engine.text import valid_text, with_valid_texts

RESPONSE_BEGIN, RESPONSE_END = "<tool_response>", "</tool_response>"

INSTRUCTIONS = """\
You can call these functions:
{functions}
To call one, write its name and arguments in this form, then wait for its result:
{example}"""

EXAMPLE = {"name": "function", "arguments": {"argument": "value"}}


@dataclass(frozen=True)
class Tools:
    """The functions one question may use.

    Attributes
    ----------
    functions : each ``{"type": "function", "function": {"name": ..., "description": ..., "parameters": JSON Schema}}``.
        ``"strict": True`` beside the name refuses keywords of the schema that a grammar cannot follow; otherwise these
        are left to the function.
    choice : "auto" leaves it to the model, "none" forbids calls, "required" demands at least one, a name demands
        one call of that function.
    parallel : whether several calls may come at once.

    Raises
    ------
    InvalidInput
        If a tool is not a function, a function has no name, two have the same one, or ``choice`` names none of them.
    """

    functions: Sequence[Mapping[str, Any]]
    choice: str = "auto"
    parallel: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.choice, str):
            raise InvalidInput(f"The tool choice {quote(self.choice)} is not a word or the name of a function.")
        if not isinstance(self.functions, list | tuple):
            raise InvalidInput(f"The functions are a list, not {quote(self.functions)}.")
        # Frozen: these lines only replace invalid characters of what was given.
        object.__setattr__(self, "functions", with_valid_texts(list(self.functions)))
        object.__setattr__(self, "choice", valid_text(self.choice))
        for function in self.functions:
            _check_function(function)
        names = self.names
        for name in names:
            if not isinstance(name, str) or not name or names.count(name) > 1:
                called = listed(map(quote, names))
                raise InvalidInput(f"Each function needs a name of its own; they are called {called}.")
        if self.choice not in ("auto", "none", "required", *names):
            known = listed(["auto", "none", "required", *names])
            raise InvalidInput(f"The tool choice {quote(self.choice)} is not one of {known}.")
        if self.choice == "required" and not names:
            raise InvalidInput("A function call is required, but there are no functions.")

    @property
    def names(self) -> list[Any]:
        return [function["function"].get("name") for function in self.functions]

    @property
    def parameters(self) -> dict[str, Mapping[str, Any]]:
        """The JSON Schema of the arguments of each function, by its name."""
        return {tool["function"]["name"]: tool["function"].get("parameters") or {} for tool in self.functions}

    @property
    def told(self) -> list[dict[str, Any]]:
        """The functions as the model is told of them: without ``strict``, which is not for the model."""
        return [
            {**tool, "function": {key: value for key, value in tool["function"].items() if key != "strict"}}
            for tool in self.functions
        ]


def _check_function(function: Any) -> None:
    inner = function.get("function") if isinstance(function, Mapping) else None
    if not isinstance(inner, Mapping):
        raise InvalidInput(
            f"The tool {quote(function)} is not a function, which is "
            '{"type": "function", "function": {"name": ..., "parameters": {...}}}.'
        )
    if not isinstance(inner.get("parameters"), Mapping | None):
        raise InvalidInput(f"The parameters of the function {quote(inner.get('name'))} are not a JSON Schema object.")


def knows_tools(template: str, tool_format: ToolFormat) -> bool:
    """Return whether a chat template writes functions and results, in the format of its model's calls."""
    return re.search(r"\btools\b", template) is not None and tool_format.is_in(template)


def for_template(messages: Sequence[Mapping[str, Any]], template: str, tool_format: ToolFormat) -> list[dict[str, Any]]:
    """Convert messages for a template that knows functions; calls become text where it does not write them."""
    if "tool_calls" not in template:
        messages = [_with_calls_as_text(message, tool_format) for message in messages]
    return tool_format.for_template(with_plain_texts(messages), template)


def with_plain_texts(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return messages in which text without other parts is a plain string, but for those of the user."""
    written = []
    for message in messages:
        content = message["content"]
        only_text = all(part["type"] == "text" for part in content)
        if message["role"] != "user" and only_text:
            content = "".join(part["text"] for part in content)
        written.append({**message, "content": content})
    return written


def _with_calls_as_text(message: Mapping[str, Any], tool_format: ToolFormat) -> dict[str, Any]:
    calls = [call["function"] for call in message.get("tool_calls", ())]
    text = [_text(tool_format.write(calls))] if calls else []
    return {**message, "content": [*message["content"], *text]}


def images_after_results(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Move pictures in results, for templates that take none there, to a user turn after the last result in a row."""
    moved: list[dict[str, Any]] = []
    waiting: list[dict[str, Any]] = []
    for message in [*messages, {"role": "end"}]:
        if message["role"] != "tool" and waiting:
            moved.append({"role": "user", "content": waiting})
            waiting = []
        if message["role"] == "tool":
            waiting += [part for part in message["content"] if part["type"] != "text"]
            texts = [part for part in message["content"] if part["type"] == "text"]
            moved.append({**message, "content": texts or [_text("The picture follows.")]})
        elif message["role"] != "end":
            moved.append(dict(message))
    return moved


def without_tools(
    messages: Sequence[Mapping[str, Any]], functions: Sequence[Mapping[str, Any]], tool_format: ToolFormat
) -> list[dict[str, Any]]:
    """Convert messages for a template without functions: functions, calls and results go into the other roles."""
    written: list[dict[str, Any]] = []
    for message in messages:
        role, content = message["role"], list(message["content"])
        if role == "tool":
            content = [_text(f"{RESPONSE_BEGIN}\n"), *content, _text(f"\n{RESPONSE_END}\n")]
            if written and written[-1].get("results"):
                written[-1]["content"] += content
                continue
            written.append({"role": "user", "content": content, "results": True})
            continue
        content = _with_calls_as_text(message, tool_format)["content"]
        if role == "user" and written and written[-1].get("results"):
            written[-1]["content"] += content
            continue
        written.append({"role": role, "content": content})
    for message in written:
        message.pop("results", None)
    if not functions:
        return written
    lines = "\n".join(json.dumps(function, ensure_ascii=False) for function in functions)
    text = INSTRUCTIONS.format(functions=lines, example=tool_format.write([EXAMPLE]))
    return with_system_text(written, text)


def with_system_text(messages: Sequence[dict[str, Any]], text: str) -> list[dict[str, Any]]:
    """Append a text to the system message, a new one if there is none; return the messages."""
    if not messages or messages[0]["role"] != "system":
        return [{"role": "system", "content": [_text(text)]}, *messages]
    # One text: templates read only the first part of a system message.
    texts = [part["text"] for part in messages[0]["content"] if part["type"] == "text"]
    others = [part for part in messages[0]["content"] if part["type"] != "text"]
    system = {"role": "system", "content": [_text("\n\n".join(["".join(texts), text])), *others]}
    return [system, *messages[1:]]


def _text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}
