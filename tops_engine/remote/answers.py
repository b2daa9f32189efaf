"""What a server answers: what is known of it from outside, and nothing made up."""

import json
import time
from typing import Any

from tops_engine.answers.base import BaseAnswer, FinishReason, InvalidToolCall, Report, ToolCall
from tops_engine.errors import ServerError

REASONS: dict[str, FinishReason] = {
    "stop": "stop",
    "tool_calls": "stop",
    "length": "length",
}


class RemoteUsage(Report):
    """Token counts as the server says them; None is what it does not say.

    Attributes
    ----------
    input_tokens : of the prompt, as the language model gets it: after the server's pruning.
    completion_tokens : written, the end token included.
    visual_tokens : of all pictures, after the server's pruning.
    reused_tokens : of the input, known to the server from an earlier prompt.
    """

    input_tokens: int
    completion_tokens: int
    visual_tokens: int | None = None
    reused_tokens: int | None = None


class RemoteTimings(Report):
    """Seconds measured here, with the way there and back, and any repeated attempts.

    Attributes
    ----------
    first_token : until the first piece of the answer; None where it came as a whole.
    total : until the answer was whole.
    """

    first_token: float | None
    total: float


class RemoteAnswer(BaseAnswer):
    """An answer that a server wrote.

    Attributes
    ----------
    pruning : what was asked for; None leaves it to the server.
    usage : None if the server says nothing of it.
    """

    pruning: dict[str, Any] | None
    usage: RemoteUsage | None
    timings: RemoteTimings


class AnswerReader:
    """Puts an answer together from the pieces a server sends, or from one that is whole.

    Parameters
    ----------
    pruning : what was asked for.
    """

    def __init__(self, pruning: dict[str, Any] | None) -> None:
        self._pruning = pruning
        self._begun = time.perf_counter()
        self._first_token: float | None = None
        self._model = ""
        self._text = ""
        self._calls: dict[int, list[str]] = {}
        self._reason: str | None = None
        self._usage: RemoteUsage | None = None

    def push(self, chunk: Any) -> str:
        """Take a piece of a stream; returns its text."""
        text = self._take(chunk, "delta")
        if self._first_token is None and (text or self._calls):
            self._first_token = time.perf_counter() - self._begun
        return text

    def whole(self, completion: Any) -> RemoteAnswer:
        """The answer that came as a whole."""
        self._take(completion, "message")
        return self.answer()

    def answer(self, cancelled: bool = False) -> RemoteAnswer:
        """The answer, now that nothing more comes.

        Raises
        ------
        ServerError
            If the server gave it up.
        """
        if not cancelled and self._reason not in REASONS:
            said = f"says it ended by {self._reason!r}" if self._reason else "ended it without saying so"
            raise ServerError(f"The server gave up the answer: it {said}; ask again.")
        calls, invalid = self._read_calls()
        return RemoteAnswer(
            text=self._text,
            finish_reason="cancelled" if cancelled else REASONS[str(self._reason)],
            model=self._model,
            tool_calls=calls,
            invalid_tool_calls=invalid,
            pruning=self._pruning,
            usage=self._usage,
            timings=RemoteTimings(first_token=self._first_token, total=time.perf_counter() - self._begun),
        )

    def _take(self, received: Any, name: str) -> str:
        self._model = received.model or self._model
        if received.usage is not None:
            self._usage = _read_usage(received.usage)
        text = ""
        for choice in received.choices[:1]:
            self._reason = choice.finish_reason or self._reason
            part = getattr(choice, name)
            text = part.content or ""
            for position, call in enumerate(part.tool_calls or ()):
                self._take_call(getattr(call, "index", position), call.function)
        # As in the engine's answers: chat templates leave white space in front.
        text = text if self._text else text.lstrip()
        self._text += text
        return text

    def _take_call(self, index: int, function: Any) -> None:
        known = self._calls.setdefault(index, ["", ""])
        if function is not None:
            known[0] = function.name or known[0]
            known[1] += function.arguments or ""

    def _read_calls(self) -> tuple[list[ToolCall], list[InvalidToolCall]]:
        calls: list[ToolCall] = []
        invalid: list[InvalidToolCall] = []
        cut = self._reason not in REASONS or REASONS[self._reason] == "length"
        for name, arguments in self._calls.values():
            try:
                calls.append(ToolCall(name=name, arguments=json.loads(arguments or ("" if cut else "{}"))))
            except ValueError:
                error = "The call was cut off." if cut else "The arguments are not a JSON object."
                text = f'{{"name": {json.dumps(name)}, "arguments": {arguments}'
                invalid.append(InvalidToolCall(text=text, error=error))
        return calls, invalid


def _read_usage(usage: Any) -> RemoteUsage:
    details = usage.prompt_tokens_details
    extra = getattr(details, "model_extra", None) or {}
    # A field of vLLM: {"image": 128}.
    visual = extra.get("multimodal_tokens")
    return RemoteUsage(
        input_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens or 0,
        visual_tokens=sum(visual.values()) if isinstance(visual, dict) else None,
        reused_tokens=details.cached_tokens if details is not None else None,
    )
