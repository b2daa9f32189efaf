"""Function calls in the answers of servers, whole or in the pieces of a stream."""

import json
from collections.abc import Mapping
from typing import Any

from tops_engine.answers.base import InvalidToolCall, ToolCall


class StreamedCall:
    """A function call of which pieces arrive."""

    def __init__(self, index: object, call_id: str | None) -> None:
        self.index = index
        self.id = call_id
        self.name = ""
        self.arguments = ""

    def continues(self, index: object, call_id: str | None, name: str | None) -> bool:
        """Return whether a piece with these marks belongs to this call.

        OpenAI's protocol numbers the calls. Some servers send no number, or the same for all calls. Their calls differ
        in the id; where there is none either, a name after complete arguments begins a call.
        """
        if None not in (index, self.index) and index != self.index:
            return False
        if call_id is not None and self.id is not None:
            return call_id == self.id
        return not (name and _is_json(self.arguments))


class CallCollector:
    """Collects the function calls of one answer."""

    def __init__(self) -> None:
        self._calls: list[StreamedCall] = []

    def __bool__(self) -> bool:
        return bool(self._calls)

    def take(self, received: Any, is_whole: bool) -> None:
        """Take the ``tool_calls`` of a message (``is_whole``), or of a piece of a stream."""
        if received is None:
            return
        # TGI streams one call in the place of a list.
        for call in received if isinstance(received, list) else [received]:
            self._take(call, is_whole)

    def _take(self, call: Any, is_whole: bool) -> None:
        # llama.cpp writes name and arguments without a "function" around them.
        function = field_of(call, "function") or call
        name = field_of(function, "name")
        arguments = field_of(function, "arguments") or field_of(function, "parameters") or ""
        given = field_of(call, "id")
        index, call_id = field_of(call, "index"), None if given in (None, "") else str(given)
        found = None
        if not is_whole:
            found = next((one for one in reversed(self._calls) if one.continues(index, call_id, name)), None)
        if found is None:
            found = StreamedCall(index, call_id)
            self._calls.append(found)
        found.id = found.id or call_id
        found.name = name or found.name
        found.arguments += arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)

    def read(self, is_cut: bool) -> tuple[list[ToolCall], list[InvalidToolCall]]:
        """Return the calls, and what is not a call.

        Parameters
        ----------
        is_cut : whether the answer is incomplete, so that its last call may be, too.
        """
        calls: list[ToolCall] = []
        invalid: list[InvalidToolCall] = []
        for call in self._calls:
            try:
                arguments = json.loads(call.arguments or ("" if is_cut else "{}"))
                calls.append(ToolCall(name=call.name, arguments=arguments))
            except ValueError:
                error = "The call was cut off." if is_cut else "The arguments are not a JSON object."
                text = f'{{"name": {json.dumps(call.name)}, "arguments": {call.arguments}'
                invalid.append(InvalidToolCall(text=text, error=error))
        return calls, invalid


def field_of(value: Any, name: str) -> Any:
    """Return a field of an object or mapping, None if it has none; the openai library builds both."""
    return value.get(name) if isinstance(value, Mapping) else getattr(value, name, None)


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True
