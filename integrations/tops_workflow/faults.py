"""The faults of a prompt, in the format of ComfyUI's ``POST /prompt``."""

from dataclasses import dataclass, field
from typing import Any

from tops_engine.errors import shorten


@dataclass(frozen=True)
class Fault:
    """A fault of a prompt.

    Attributes
    ----------
    kind, message, details, extra_info : as in ComfyUI, where ``kind`` is called ``type``, such as
        ``value_not_in_list``.
    """

    kind: str
    message: str
    details: str = ""
    extra_info: dict[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Return one of ComfyUI's ``errors``."""
        return {"type": self.kind, "message": self.message, "details": self.details, "extra_info": self.extra_info}

    def __str__(self) -> str:
        return f"{self.message}: {self.details}" if self.details else self.message


@dataclass
class NodeFaults:
    """The faults of one node, and the output nodes that cannot run because of them."""

    class_type: str
    faults: list[Fault]
    dependent_outputs: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Checked:
    """The result of a check.

    Attributes
    ----------
    outputs : ids of the output nodes that can run.
    fault : why nothing can run; None if something can.
    nodes : faults by node id; output nodes that depend on them are not in ``outputs``.
    """

    outputs: list[str]
    fault: Fault | None
    nodes: dict[str, NodeFaults]

    def lines(self) -> list[str]:
        """Return every fault as a line of text."""
        lines = [
            f"node {shorten(node_id)} ({shorten(node.class_type)}): {fault}"
            for node_id, node in self.nodes.items()
            for fault in node.faults
        ]
        return lines or ([str(self.fault)] if self.fault is not None else [])

    def errors_as_json(self) -> dict[str, Any]:
        """Return ComfyUI's ``node_errors``."""
        return {
            node_id: {
                "errors": [fault.as_json() for fault in node.faults],
                "dependent_outputs": node.dependent_outputs,
                "class_type": node.class_type,
            }
            for node_id, node in self.nodes.items()
        }
