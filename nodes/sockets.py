"""The socket types of our nodes, in addition to ComfyUI's own. Each class is the contract of a type."""

from dataclasses import dataclass
from typing import Any, TypeVar

from tops_engine.answers.base import BaseAnswer
from tops_engine.errors import InvalidInput
from tops_engine.settings import Pruning

from .models import NodeModel, TopsModel

MODEL, PRUNING, HISTORY, STATS = "TOPS_MODEL", "TOPS_PRUNING", "TOPS_HISTORY", "TOPS_STATS"

PRUNING_TIP = (
    "From TOPS Pruning; nothing connected keeps 22.2 % with TOPS, and with a server what that was started with."
)

_Value = TypeVar("_Value")


@dataclass(frozen=True)
class History:
    """Socket TOPS_HISTORY: a conversation so far, with its system instruction and pictures."""

    messages: tuple[dict[str, Any], ...] = ()

    def __str__(self) -> str:
        return "\n\n".join(f"{message['role']}: {_text(message['content'])}" for message in self.messages)


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    return "".join(part["text"] if part["type"] == "text" else "[picture] " for part in content)


@dataclass(frozen=True)
class Stats:
    """Socket TOPS_STATS: the answers with everything that was measured."""

    answers: tuple[BaseAnswer, ...] = ()

    def __str__(self) -> str:
        return "\n".join(answer.summary() for answer in self.answers)


def expect(value: Any, kind: type[_Value], socket: str, source: str) -> _Value:
    """Check the type of what arrived at a socket: a graph compares type names, which other packs may use as well."""
    if not isinstance(value, kind):
        raise _wrong_type(value, socket, source)
    return value


def _wrong_type(value: Any, socket: str, source: str) -> InvalidInput:
    return InvalidInput(f"The input {socket!r} got a {type(value).__name__}; connect it to {source}.")


def expect_model(value: Any) -> NodeModel:
    """Return the connected model."""
    if not isinstance(value, NodeModel):
        raise _wrong_type(value, "model", "TOPS Load Model")
    return value


def expect_local_model(value: Any, node: str) -> TopsModel:
    """Return the connected model for a node that looks into it, which a server does not allow."""
    return expect_model(value).local(node)


def expect_pruning(value: Any) -> Pruning:
    """Return the connected pruning, or the default one."""
    return Pruning() if value is None else expect(value, Pruning, "pruning", "TOPS Pruning or TOPS Recipe")


def pruning_for(model: NodeModel, value: Any) -> Pruning | None:
    """Return the connected pruning, or the default one of the model."""
    return model.default_pruning if value is None else expect_pruning(value)


def expect_history(value: Any) -> History:
    """Return the connected conversation, or an empty one."""
    return History() if value is None else expect(value, History, "history", "the history output of TOPS Ask")


def answer_at(stats: Stats, number: int) -> BaseAnswer:
    """Return one of the answers of a node, counted from 0."""
    return stats.answers[within(number, len(stats.answers), "answer")]


def within(number: int, count: int, what: str) -> int:
    """Return a number of something, from 0, after a check that there are so many.

    Raises
    ------
    InvalidInput
        If there are fewer.
    """
    if not count:
        raise InvalidInput(f"There is no {what} in these stats; ask about a picture first.")
    if number >= count:
        raise InvalidInput(f"There is no {what} {number}; there are {count}, counted from 0.")
    return number
