"""The answer of a server: what the server states and what the client measures."""

import time
from typing import Any

from tops_engine.answers.base import BaseAnswer, FinishReason, Piece, ReasoningPiece, Report, StageUsage
from tops_engine.errors import ServerError
from tops_engine.remote.calls import CallCollector
from tops_engine.remote.errors import reported
from tops_engine.remote.inline_reasoning import InlineReasoning

# Reasons for which an answer is shorter than the model wrote it or would have written it. Any other reason that a
# server states, such as TGI's "eos_token", means that the answer is complete.
CUT: frozenset[str] = frozenset(["length", "max_tokens", "model_length"])
FAILED: frozenset[str] = frozenset(["abort", "aborted", "cancelled", "canceled", "content_filter", "error"])


# Fields of the reasoning, which OpenAI's protocol does not have: vLLM before 0.12, SGLang, llama.cpp and DeepSeek; vLLM
# since, Ollama and OpenRouter.
REASONING = ("reasoning_content", "reasoning")


class RemoteUsage(Report):
    """Token counts as the server states them; None is a count that it does not state.

    Attributes
    ----------
    input_tokens : tokens of the prompt that entered the language model, after the pruning of the server.
    completion_tokens : tokens of the answer, the end token and the reasoning included.
    reasoning_tokens : tokens of the reasoning.
    visual_tokens : visual tokens of all pictures, after the pruning of the server.
    reused_tokens : tokens of the input that the server knew from an earlier prompt.
    """

    input_tokens: int
    completion_tokens: int
    reasoning_tokens: int | None = None
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
    continues : whether the answer continues a text; it then keeps its white space.
    visual_tokens : how many visual tokens the client sent in place of pictures; None if it sent pictures.
    """

    def __init__(self, pruning: dict[str, Any] | None, continues: bool, visual_tokens: int | None = None) -> None:
        self._pruning = pruning
        self._continues = continues
        self._visual_tokens = visual_tokens
        self._begun = time.perf_counter()
        self._first_token: float | None = None
        self._model = ""
        self._text = ""
        self._reasoning = ""
        self._inline = InlineReasoning(is_answer=continues)
        self._calls = CallCollector()
        self._reason: str | None = None
        self._is_whole = False
        self._usage: RemoteUsage | None = None

    def push(self, chunk: Any) -> list[Piece]:
        """Take a chunk of a stream and return its reasoning and its text, if it has any."""
        reasoning, text = self._take(chunk, "delta")
        pieces: list[Piece] = [ReasoningPiece(reasoning)] if reasoning else []
        pieces += [text] if text else []
        if self._first_token is None and (pieces or self._calls):
            self._first_token = time.perf_counter() - self._begun
        return pieces

    def whole(self, completion: Any) -> RemoteAnswer:
        """Return the answer of a whole completion."""
        self._is_whole = True
        self._take(completion, "message")
        return self.answer()

    def answer(self, cancelled: bool = False) -> RemoteAnswer:
        """Return the answer; call this when nothing more arrives.

        Raises
        ------
        ServerError
            If the server ended the answer without completing it.
        """
        self._keep(*self._inline.finish())
        # A stream without a reason ended early. A whole answer is whole.
        ended_early = self._reason is None and not self._is_whole
        if not cancelled and (ended_early or self._reason in FAILED):
            reason = f"its reason is {self._reason!r}" if self._reason else "it states no reason"
            begun = f", after {self._text[:80]!r}" if self._text else ""
            raise ServerError(f"The server did not complete the answer ({reason}{begun}); ask again.")
        finish_reason: FinishReason = "length" if self._reason in CUT else "stop"
        calls, invalid = self._calls.read(is_cut=cancelled or finish_reason == "length")
        return RemoteAnswer(
            text=self._text,
            reasoning=self._reasoning.rstrip(),
            finish_reason="cancelled" if cancelled else finish_reason,
            model=self._model,
            tool_calls=calls,
            invalid_tool_calls=invalid,
            pruning=self._pruning,
            usage=self._usage,
            timings=RemoteTimings(first_token=self._first_token, total=time.perf_counter() - self._begun),
        )

    def _take(self, received: Any, name: str) -> tuple[str, str]:
        """Read a chunk or a whole completion; return its reasoning and its text."""
        if (error := getattr(received, "error", None)) is not None:
            raise reported(error)
        self._model = received.model or self._model
        if received.usage is not None:
            self._usage = _read_usage(received.usage, self._visual_tokens)
        text = reasoning = ""
        for choice in received.choices[:1]:
            self._reason = choice.finish_reason or self._reason
            part = getattr(choice, name)
            # A model that refuses says so in a field of its own.
            text = part.content or getattr(part, "refusal", None) or ""
            reasoning = next((given for name in REASONING if (given := getattr(part, name, None))), "")
            self._calls.take(part.tool_calls, self._is_whole)
        thought, text = self._inline.push(text)
        if self._is_whole or any(choice.finish_reason for choice in received.choices[:1]):
            rest = self._inline.finish()
            thought, text = thought + rest[0], text + rest[1]
        return self._keep(reasoning + thought, text)

    def _keep(self, reasoning: str, text: str) -> tuple[str, str]:
        # Chat templates leave white space in front of the answer; the engine removes it, too.
        text = text if self._text or self._continues else text.lstrip()
        reasoning = reasoning if self._reasoning else reasoning.lstrip()
        self._text += text
        self._reasoning += reasoning
        return reasoning, text


def _read_usage(usage: Any, visual_tokens: int | None) -> RemoteUsage | None:
    if usage.prompt_tokens is None:
        return None
    details = usage.prompt_tokens_details
    extra = getattr(details, "model_extra", None) or {}
    # A field of vLLM, such as {"image": 128}.
    visual = extra.get("multimodal_tokens")
    return RemoteUsage(
        input_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens or 0,
        reasoning_tokens=getattr(usage.completion_tokens_details, "reasoning_tokens", None),
        visual_tokens=sum(visual.values()) if isinstance(visual, dict) else visual_tokens,
        reused_tokens=details.cached_tokens if details is not None else None,
    )
