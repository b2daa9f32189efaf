"""The base classes of answers, of a local model or a server. They need no torch, so that clients need not load it."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict

from tops_engine.grounding.places import Box, Point

if TYPE_CHECKING:
    from tops_engine.media.token_map import TokenMap

FinishReason = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True)
class ReasoningPiece:
    """A piece of the reasoning of a thinking model, as it streams; the pieces of the answer are texts."""

    text: str

    def __str__(self) -> str:
        return self.text


class Report(BaseModel):
    """The base class of everything that answers report: frozen values."""

    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True)


class ToolCall(Report):
    """A function that the model calls, with arguments that satisfy its parameters."""

    name: str
    arguments: dict[str, Any]


#: What streams before the answer: pieces of its text and of the reasoning before it, and each call once it is complete.
Piece = str | ReasoningPiece | ToolCall


class InvalidToolCall(Report):
    """Text that began like a call but is none, such as a call cut off by ``max_tokens``."""

    text: str
    error: str


class StageUsage(Report):
    """From ``layer`` on, ``visual_tokens[i]`` tokens of picture or video i remained.

    ``rating_layer`` is the decoder layer whose attention rated the tokens: not ``layer`` itself where that one computes
    no attention between tokens, as in linear attention. None where no decoder layer's attention did.
    """

    layer: int
    visual_tokens: list[int]
    rating_layer: int | None = None


class TokenCounts(Protocol):
    """The token counts that every answer states; None is a count that is not known.

    Attributes
    ----------
    input_tokens : tokens of the prompt that entered the language model, after pruning before it.
    input_visual_tokens : those of them that are visual tokens.
    unpruned_visual_tokens : visual tokens of all pictures and videos before pruning.
    layer_average : visual tokens that a decoder layer saw on average.
    stages : what remained of each picture and video, from which layer on; empty if it is not known.
    completion_tokens : tokens of the answer, the end token and the reasoning included.
    reasoning_tokens : tokens of the reasoning.
    reused_tokens : tokens of the input that an earlier prompt had in common, so that they were not read again.
    """

    @property
    def input_tokens(self) -> int: ...
    @property
    def input_visual_tokens(self) -> int | None: ...
    @property
    def unpruned_visual_tokens(self) -> int | None: ...
    @property
    def layer_average(self) -> float | None: ...
    @property
    def stages(self) -> Sequence[StageUsage]: ...
    @property
    def completion_tokens(self) -> int: ...
    @property
    def reasoning_tokens(self) -> int | None: ...
    @property
    def reused_tokens(self) -> int | None: ...


class Seconds(Protocol):
    """The times that every answer states: until its first piece (None if unknown), and until it was complete."""

    @property
    def first_token(self) -> float | None: ...
    @property
    def total(self) -> float: ...


class BaseAnswer(Report):
    """The answer of a model, local or behind a server.

    Attributes
    ----------
    text : the answer, without the end token and stop strings, and without function calls and reasoning.
    reasoning : what a thinking model wrote before its answer; empty if it wrote none.
    finish_reason : ``stop`` (end token or stop string), ``length`` (max_tokens or the context of the model),
        ``cancelled``.
    model : the name of the model.
    tool_calls, invalid_tool_calls : functions to call, in the order they were written.
    boxes, points : the places in pictures that the answer names, in the pixels of the original pictures; empty if it
        names none, if the model has no known format for them, or if a server wrote it.
    pruning : the options of the pruning; None if the server decides and does not state them.
    usage : the token counts; None if the server does not state them.
    timings : the measured seconds.
    token_map : which visual tokens remained, to draw; None if it is not known.
    """

    text: str
    reasoning: str = ""
    finish_reason: FinishReason
    model: str
    tool_calls: list[ToolCall] = []
    invalid_tool_calls: list[InvalidToolCall] = []
    boxes: list[Box] = []
    points: list[Point] = []

    if TYPE_CHECKING:
        # Each kind of answer has its own fields for these.
        @property
        def pruning(self) -> dict[str, Any] | None: ...
        @property
        def usage(self) -> TokenCounts | None: ...
        @property
        def timings(self) -> Seconds: ...
        @property
        def token_map(self) -> TokenMap | None: ...

    @abstractmethod
    def summary(self) -> str:
        """Return what the answer cost, in a few readable lines."""
