"""Functions a model may call: how it is told about them, what it may write, and what is read from it.

All models write calls the way Hermes and the Qwen models do, one JSON object between two marks::

    <tool_call>
    {"name": "crop", "arguments": {"left": 0.5}}
    </tool_call>

Where the checkpoint's chat template knows functions in this form, it writes the prompt. Any other model is told about
them in the system message, and results come back in the user's turn between ``<tool_response>`` and
``</tool_response>``. Pictures stay inside a result where the template takes them there; otherwise they follow in a user
turn of their own.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tops_engine.errors import InvalidInput, listed, quote
from tops_engine.text import valid_text, with_valid_texts

BEGIN, END = "<tool_call>", "</tool_call>"
RESPONSE_BEGIN, RESPONSE_END = "<tool_response>", "</tool_response>"

INSTRUCTIONS = """\
You can call these functions:
{functions}
To call one, write its name and arguments as JSON between two marks, then wait for its result:
<tool_call>
{{"name": "function", "arguments": {{"argument": "value"}}}}
</tool_call>"""


@dataclass(frozen=True)
class Tools:
    """The functions one question may use.

    Attributes
    ----------
    functions : each ``{"type": "function", "function": {"name": ..., "description": ..., "parameters": JSON Schema}}``.
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


def _check_function(function: Any) -> None:
    inner = function.get("function") if isinstance(function, Mapping) else None
    if not isinstance(inner, Mapping):
        raise InvalidInput(
            f"The tool {quote(function)} is not a function, which is "
            '{"type": "function", "function": {"name": ..., "parameters": {...}}}.'
        )
    if not isinstance(inner.get("parameters"), Mapping | None):
        raise InvalidInput(f"The parameters of the function {quote(inner.get('name'))} are not a JSON Schema object.")


def knows_tools(template: str) -> bool:
    """Return whether a chat template writes functions, calls and results in the form that all models here use."""
    return "tools" in template and BEGIN in template and "arguments" in template and "<function=" not in template


def for_template(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Convert messages for a template that knows functions: text without other parts becomes a plain string."""
    written = []
    for message in messages:
        content = message["content"]
        only_text = all(part["type"] == "text" for part in content)
        if message["role"] != "user" and only_text:
            content = "".join(part["text"] for part in content)
        written.append({**message, "content": content})
    return written


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
    messages: Sequence[Mapping[str, Any]], functions: Sequence[Mapping[str, Any]]
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
        for call in message.get("tool_calls", ()):
            body = json.dumps(call["function"], ensure_ascii=False)
            content.append(_text(f"{BEGIN}\n{body}\n{END}"))
        if role == "user" and written and written[-1].get("results"):
            written[-1]["content"] += content
            continue
        written.append({"role": role, "content": content})
    for message in written:
        message.pop("results", None)
    if not functions:
        return written
    lines = "\n".join(json.dumps(function, ensure_ascii=False) for function in functions)
    return with_system_text(written, INSTRUCTIONS.format(functions=lines))


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
