"""The answer of a server: what the server states and what the client measures."""

import json
import time
from typing import Any

from tops_engine.answers.base import BaseAnswer, FinishReason, InvalidToolCall, Report, StageUsage, ToolCall
from tops_engine.errors import ServerError

REASONS: dict[str, FinishReason] = {
    "stop": "stop",
    "tool_calls": "stop",
    "length": "length",
}


class RemoteUsage(Report):
    """Token counts as the server states them; None is a count that it does not state.

    Attributes
    ----------
    input_tokens : tokens of the prompt that entered the language model, after the pruning of the server.
    completion_tokens : tokens of the answer, the end token included.
    visual_tokens : visual tokens of all pictures, after the pruning of the server.
    reused_tokens : tokens of the input that the server knew from an earlier prompt.
    """

    input_tokens: int
    completion_tokens: int
    visual_tokens: int | None = None
    reused_tokens: int | None = None

    @property
    def input_visual_tokens(self) -> int | None:
        """The same as ``visual_tokens``, under the name that the counts of every engine share."""
        return self.visual_tokens

    @property
    def unpruned_visual_tokens(self) -> None:
        """A server does not state it."""

    @property
    def layer_average(self) -> None:
        """A server does not state it."""

    @property
    def stages(self) -> list[StageUsage]:
        """Empty: a server does not state them."""
        return []


class RemoteTimings(Report):
    """Seconds measured by the client, including the network and repeated attempts.

    Attributes
    ----------
    first_token : until the first piece of the answer; None if the answer arrived as a whole.
    total : until the answer was complete.
    """

    first_token: float | None
    total: float


class RemoteAnswer(BaseAnswer):
    """An answer written by a server.

    Attributes
    ----------
    pruning : the options that were asked for; None if the server decided.
    usage : the token counts; None if the server does not state them.
    """

    pruning: dict[str, Any] | None
    usage: RemoteUsage | None
    timings: RemoteTimings

    @property
    def token_map(self) -> None:
        """A server does not state which tokens it kept."""

    def summary(self) -> str:
        usage, timings = self.usage, self.timings
        seconds = f"{timings.total:.3f} s in total"
        if timings.first_token is not None:
            seconds = f"first token after {timings.first_token:.3f} s, {seconds}"
        lines = [seconds, f"model {self.model} of a server"]
        if usage is not None:
            visual = "" if usage.visual_tokens is None else f" ({usage.visual_tokens} visual)"
            prompt = f"prompt {usage.input_tokens} tokens{visual} after the server's pruning"
            lines.insert(0, f"{prompt}, answer {usage.completion_tokens} tokens ({self.finish_reason})")
        return "\n".join(lines)


class AnswerReader:
    """Builds an answer from the chunks of a stream, or from a whole completion.

    Parameters
    ----------
    pruning : the options that were asked for.
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
        """Take a chunk of a stream and return its text."""
        text = self._take(chunk, "delta")
        if self._first_token is None and (text or self._calls):
            self._first_token = time.perf_counter() - self._begun
        return text

    def whole(self, completion: Any) -> RemoteAnswer:
        """Return the answer of a whole completion."""
        self._take(completion, "message")
        return self.answer()

    def answer(self, cancelled: bool = False) -> RemoteAnswer:
        """Return the answer; call this when nothing more arrives.

        Raises
        ------
        ServerError
            If the server ended the answer without completing it.
        """
        if not cancelled and self._reason not in REASONS:
            reason = f"its reason is {self._reason!r}" if self._reason else "it states no reason"
            raise ServerError(f"The server did not complete the answer ({reason}); ask again.")
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
        # Chat templates leave white space in front of the answer; the engine removes it, too.
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
    # A field of vLLM, such as {"image": 128}.
    visual = extra.get("multimodal_tokens")
    return RemoteUsage(
        input_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens or 0,
        visual_tokens=sum(visual.values()) if isinstance(visual, dict) else None,
        reused_tokens=details.cached_tokens if details is not None else None,
    )
