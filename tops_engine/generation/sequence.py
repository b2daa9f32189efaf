"""The state of an answer while it is written."""

from collections.abc import Sequence

from tops_engine.answers.base import FinishReason, InvalidToolCall, Piece, ReasoningPiece, ToolCall
from tops_engine.families import Prompt
from tops_engine.generation.planning import Group
from tops_engine.generation.reasoning import ReasoningState
from tops_engine.generation.text_stream import TextStream
from tops_engine.generation.tool_calls import CallReader


class RunningSequence:
    """An answer while it is written.

    Parameters
    ----------
    prompt : the prompt that is answered.
    groups : the pictures and videos whose tokens are chosen together, with their token counts at each stage.
    max_new : the most tokens to write.
    eos_token_ids : the tokens that end an answer.
    stream : turns the tokens of the answer into text.
    reasoning : says which tokens are reasoning.
    reasoning_stream : turns those into text.
    reader : separates function calls from the text; None if the model has no functions to call.

    Attributes
    ----------
    token_ids : the tokens written so far, the end token included.
    finish_reason : why the answer ended; None while it is being written.
    """

    def __init__(
        self,
        prompt: Prompt,
        groups: Sequence[Group],
        max_new: int,
        eos_token_ids: frozenset[int],
        stream: TextStream,
        reasoning: ReasoningState,
        reasoning_stream: TextStream,
        reader: CallReader | None,
    ) -> None:
        self.prompt = prompt
        self.groups = list(groups)
        self.max_new = max_new
        self.token_ids: list[int] = []
        self.finish_reason: FinishReason | None = None
        self._eos_token_ids = eos_token_ids
        self._stream = stream
        self._state = reasoning
        self._reasoning_stream = reasoning_stream
        self._reader = reader
        self._answer_ids: list[int] = []
        self._num_calls = 0

    @property
    def done(self) -> bool:
        return self.finish_reason is not None

    @property
    def text(self) -> str:
        """The answer so far, without function calls and stop strings."""
        return self._stream.text if self._reader is None else self._reader.text

    @property
    def marked_text(self) -> str:
        """The answer so far with its special tokens, some of which mark places; without them if it has functions."""
        return self._stream.decode(self._answer_ids) if self._reader is None else self.text

    @property
    def tool_calls(self) -> list[ToolCall]:
        return self._reader.calls if self._reader is not None else []

    @property
    def invalid_tool_calls(self) -> list[InvalidToolCall]:
        return self._reader.invalid_calls if self._reader is not None else []

    @property
    def reasoning(self) -> str:
        """The reasoning so far."""
        return self._reasoning_stream.text.rstrip()

    @property
    def num_reasoning(self) -> int:
        """Tokens of the reasoning so far."""
        return self._state.num_tokens

    def push(self, token: int, grammar_is_complete: bool = False) -> list[Piece]:
        """Take the next token and return what is now certain: text, and calls that are complete.

        A finished answer ignores the token.

        Parameters
        ----------
        grammar_is_complete : whether the grammar of the answer allows no token after this one.
        """
        return [] if self.done else self._with_calls(self._push(token, grammar_is_complete))

    def _push(self, token: int, grammar_is_complete: bool) -> Piece:
        self.token_ids.append(token)
        thought = self._state.inside
        if token in self._eos_token_ids:
            self.finish_reason = "stop"
            return self._last(thought)
        part = self._state.push(token)
        if part == "answer":
            self._answer_ids.append(token)
        text = {"answer": self._stream, "reasoning": self._reasoning_stream}[part].push(token) if part != "mark" else ""
        if self._stream.stopped or grammar_is_complete:
            self.finish_reason = "stop"
        elif len(self.token_ids) >= self.max_new:
            self.finish_reason = "length"
        if part == "answer":
            return self._shown(text)
        ended = self.done or not self._state.inside
        return _piece(text + (self._reasoning_stream.finish() if ended else ""))

    def cancel(self) -> list[Piece]:
        """End the answer here and return what was held back."""
        if self.done:
            return []
        self.finish_reason = "cancelled"
        return self._with_calls(self._last(self._state.inside))

    def _with_calls(self, piece: Piece) -> list[Piece]:
        """Return a piece, unless it is empty, and the calls that are new."""
        new = self.tool_calls[self._num_calls :]
        self._num_calls += len(new)
        return [*([piece] if piece else []), *new]

    def _last(self, thought: bool) -> Piece:
        return _piece(self._reasoning_stream.finish()) if thought else self._shown("")

    def _shown(self, text: str) -> str:
        """Return the part of new text that belongs to no function call; at the end nothing is held back."""
        if self.done:
            text += self._stream.finish()
        if self._reader is None:
            return text
        return self._reader.push(text) + (self._reader.finish(self.finish_reason != "stop") if self.done else "")


def _piece(reasoning: str) -> Piece:
    return ReasoningPiece(reasoning) if reasoning else ""
