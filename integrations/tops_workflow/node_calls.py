"""One node: what its result depends on, and running it once or once for each element of a list."""

import asyncio
import inspect
import traceback
import uuid
from dataclasses import dataclass
from typing import Any

from tops_engine.errors import TopsError, shorten
from tops_workflow.convert import is_link
from tops_workflow.growing import grouped

#: Characters of an input in the report of a failure.
SHOWN_INPUT = 200
#: Characters of an error in the message of a failure.
SHOWN_ERROR = 240


class NodeFailed(TopsError):
    """A node raised an error.

    Attributes
    ----------
    node_id, class_type : of the node.
    error : what it raised.
    inputs : the names of its inputs with their values as short texts.
    trace : the lines of the traceback.
    """

    def __init__(self, node_id: str, class_type: str, error: Exception, inputs: dict[str, Any]) -> None:
        text = str(error)
        shown = text if len(text) <= SHOWN_ERROR else text[:SHOWN_ERROR] + "…"
        super().__init__(f"{class_type} (node {shorten(node_id)}): {shown}")
        self.node_id, self.class_type, self.error = node_id, class_type, error
        self.inputs = {name: [_short(value) for value in values] for name, values in inputs.items()}
        self.trace = traceback.format_exception(error)


@dataclass(frozen=True)
class Result:
    """The result of a node.

    Attributes
    ----------
    outputs : a list for each output slot, with one element unless the output is a list.
    ui : what the node shows.
    """

    outputs: list[list[Any]]
    ui: dict[str, list[Any]]


def call_node(node: Any, inputs: dict[str, list[Any]]) -> Result:
    """Run a node once, or once for each element of its longest input.

    Raises
    ------
    TopsError
        If the node returns a graph to run in its place.
    """
    cls = type(node)
    is_list = getattr(cls, "OUTPUT_IS_LIST", [False] * len(cls.RETURN_TYPES))
    outputs: list[list[Any]] = [[] for _ in cls.RETURN_TYPES]
    ui: dict[str, list[Any]] = {}
    for arguments in _calls(cls, inputs):
        returned = getattr(node, cls.FUNCTION)(**grouped(arguments))
        if inspect.iscoroutine(returned):
            returned = asyncio.run(returned)
        values = returned
        if isinstance(returned, dict):
            if "expand" in returned:
                raise TopsError("This node expands into other nodes, which only ComfyUI can run.")
            for name, shown in returned.get("ui", {}).items():
                ui.setdefault(name, []).extend(shown)
            values = returned.get("result", ())
        for slot, value in enumerate(values or ()):
            if is_list[slot]:
                outputs[slot].extend(value)
            else:
                outputs[slot].append(value)
    return Result(outputs, ui)


def _calls(cls: Any, inputs: dict[str, list[Any]]) -> list[dict[str, Any]]:
    """Return the arguments of each call. A shorter list repeats its last element; an empty list means no call."""
    if getattr(cls, "INPUT_IS_LIST", False):
        return [inputs]
    is_empty = any(not values for values in inputs.values())
    longest = 0 if is_empty else max((len(values) for values in inputs.values()), default=1)
    return [{name: values[min(index, len(values) - 1)] for name, values in inputs.items()} for index in range(longest)]


def freshness(cls: Any, inputs: dict[str, Any]) -> str:
    """Return what IS_CHANGED says as a text: the node runs again if it differs from that of the last run."""
    judge = getattr(cls, "IS_CHANGED", None)
    if judge is None:
        return ""
    parameters = inspect.signature(judge).parameters
    takes_all = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters.values())
    shown = {
        name: None if is_link(value) else value for name, value in inputs.items() if takes_all or name in parameters
    }
    if getattr(cls, "INPUT_IS_LIST", False):
        shown = {name: [value] for name, value in shown.items()}
    try:
        value = judge(**shown)
    except Exception:  # as in ComfyUI: a node that cannot say whether it changed runs again, and shows its error then
        return uuid.uuid4().hex
    return uuid.uuid4().hex if value != value else f"{type(value).__name__} {value!r}"


def _short(value: Any) -> str:
    text = repr(value) if isinstance(value, str | int | float | bool | None) else type(value).__name__
    return text if len(text) <= SHOWN_INPUT else text[:SHOWN_INPUT] + "…"
