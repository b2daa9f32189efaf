"""What there is to say of every answer, of a model here or behind a server; no torch, which clients need not load."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

FinishReason = Literal["stop", "length", "cancelled"]


class Report(BaseModel):
    """Frozen values."""

    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True)


class ToolCall(Report):
    """A function the model calls, with arguments that satisfy its parameters."""

    name: str
    arguments: dict[str, Any]


class InvalidToolCall(Report):
    """What began like a call and is none, such as one cut off by ``max_tokens``."""

    text: str
    error: str


class BaseAnswer(Report):
    """What there is to say of every answer, wherever it was written.

    Attributes
    ----------
    text : the answer, without the end token and stop strings, and without function calls.
    finish_reason : ``stop`` (end token or stop string), ``length`` (max_tokens or the model's context), ``cancelled``.
    tool_calls, invalid_tool_calls : functions to call, in the order they were written.
    """

    text: str
    finish_reason: FinishReason
    model: str
    tool_calls: list[ToolCall] = []
    invalid_tool_calls: list[InvalidToolCall] = []
