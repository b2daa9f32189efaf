"""Primitive nodes: each sets the widgets that it is linked to."""

import math
from datetime import datetime
from typing import Any

from tops_workflow.graphs import Node, Section, Workflow
from tops_workflow.saved_graph import PRIMITIVE
from tops_workflow.texts import fill_patterns
from tops_workflow.widgets import Input

#: Set by the user to fill patterns such as ``%Node.widget%`` in the value.
FILL_PATTERNS = "Run widget replace on values"


def apply_primitives(workflow: Workflow) -> None:
    """Give each linked widget the value of its primitive."""
    for section in workflow.sections():
        for node in section.nodes.values():
            if node.kind == PRIMITIVE:
                _apply(node, section)


def _apply(primitive: Node, section: Section) -> None:
    targets = [(node, slot.name) for node, slot in section.targets(primitive.id, 0)]
    first = next((node.widget(name) for node, name in targets), None)
    saved = primitive.saved_values if isinstance(primitive.saved_values, list) else []
    if not saved and first is None:
        return
    value = saved[0] if saved else first.value if first is not None else None
    if isinstance(value, str) and primitive.properties.get(FILL_PATTERNS):
        value = fill_patterns(value, section.nodes.values(), datetime.now())
    for node, name in targets:
        widget = node.widget(name)
        if widget is not None:
            widget.value = rounded(widget.entry, value)


def rounded(entry: Input | None, value: Any) -> Any:
    """Return a number as the frontend rounds it when a widget is set: to the step of the input.

    An integer is not held to the bounds; a float is, if it is rounded at all.
    """
    if entry is None or isinstance(value, bool) or not isinstance(value, int | float):
        return value
    options = entry.options
    if entry.widget_kind == "INT":
        step = options.get("step") or 1
        offset = 0 if step == 1 else math.fmod(options.get("min") or 0, step)
        return int(math.floor((value - offset) / step + 0.5) * step + offset)
    if entry.widget_kind != "FLOAT":
        return value
    step = options.get("step") or 0.5
    precision = max(0, -math.floor(math.log10(step)))
    to = options.get("round") or (10**-precision if precision else 0)
    if not to:
        return value
    near = round(math.floor(value / to + 0.5) * to, precision)
    return min(max(near, options.get("min", 0)), options.get("max", 2048))
