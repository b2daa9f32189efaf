"""Values of widgets that a node standing for a subgraph shows in place of the nodes inside.

A promoted widget belongs to an input of the subgraph. Each use of the subgraph has a value of its own, saved in its
``widgets_values`` in the order of the promoted inputs; the node inside keeps a value that nobody sends. Older files
name the promoted widgets in ``properties.proxyWidgets`` and may lack the inputs, which are then added as the frontend
does when it loads such a file.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tops_workflow.graphs import Link, Node, Port, Section, Slot, Workflow
from tops_workflow.saved_graph import PRIMITIVE, SUBGRAPH_INPUT

#: Marks an entry of ``proxyWidgets`` that names an input of the subgraph in place of a node inside.
HOST = "-1"
#: ``proxyWidgets`` entries of nested subgraphs were once written as ``node id: widget``.
PREFIX = re.compile(r"^\s*(\d+)\s*:\s*(.+)$")
#: Names of previews, which are shown and never sent.
PREVIEW_PREFIX = "$$"

MAX_DEPTH = 100
_NOTHING = object()


@dataclass(frozen=True)
class _Entry:
    """A promoted widget of an older file: a widget of a node inside, and the value that the user sees."""

    source: str
    widget: str
    value: Any
    inside: str | None = None


def promote_values(workflow: Workflow) -> None:
    """Give every node that stands for a subgraph the values of its promoted widgets, innermost first."""
    for section in (*_leaves_first(workflow), workflow.root):
        hosts = [node for node in section.nodes.values() if node.kind in workflow.subgraphs]
        for host in hosts:
            _read_values(host, workflow)
        for host in hosts:
            _migrate(host, workflow)


def _leaves_first(workflow: Workflow) -> list[Section]:
    """Return the subgraphs so that each comes after those that it contains; circles keep the order of the file."""
    done: dict[str, Section] = {}
    waiting = dict(workflow.subgraphs)
    while waiting:
        ready = {
            name: section
            for name, section in waiting.items()
            if not any(node.kind in waiting for node in section.nodes.values())
        }
        if not ready:
            return list(workflow.subgraphs.values())
        done |= ready
        waiting = {name: section for name, section in waiting.items() if name not in ready}
    return list(done.values())


def _read_values(host: Node, workflow: Workflow) -> None:
    inside = workflow.subgraphs[host.kind]
    saved = iter(host.saved_values if isinstance(host.saved_values, list) else [])
    kept = _quarantined(host)
    for index, port in enumerate(inside.inputs):
        value = _inner_value(inside, port)
        if value is not _NOTHING:
            own = next(saved, value)
            host.promoted[index] = kept.get(port.name, own)


def _quarantined(host: Node) -> dict[str, Any]:
    """Return the values that the frontend could not place before and that still name an input."""
    values: dict[str, Any] = {}
    for entry in _list(host.properties.get("proxyWidgetErrorQuarantine")):
        original = entry.get("originalEntry") if isinstance(entry, dict) else None
        if isinstance(original, list) and len(original) > 1 and original[0] == HOST and "hostValue" in entry:
            values.setdefault(str(original[1]), entry["hostValue"])
    return values


def _inner_value(inside: Section, port: Port) -> Any:
    """Return the value of the first widget that an input of a subgraph reaches, or _NOTHING."""
    for node_id, index in port.ends:
        node = inside.nodes[node_id]
        if index in node.promoted:
            return node.promoted[index]
        widget = node.widget(node.inputs[index].name)
        if widget is not None:
            return widget.value
    return _NOTHING


def _migrate(host: Node, workflow: Workflow) -> None:
    """Apply ``proxyWidgets``: the n-th entry has the n-th value, whatever the order of the inputs."""
    inside = workflow.subgraphs[host.kind]
    values = host.saved_values if isinstance(host.saved_values, list) else []
    entries = []
    for number, names in enumerate(_proxy_widgets(host)):
        value = values[number] if number < len(values) else _NOTHING
        entries.append(_entry(inside, workflow, names, value))
    # All entries are looked up before the first one changes the subgraph.
    places = [_place(inside, workflow, entry) for entry in entries]
    primitives: dict[str, list[_Entry]] = {}
    for entry, place in zip(entries, places, strict=True):
        source = inside.nodes.get(entry.source)
        if place is not None:
            _set(host, place, entry.value)
        elif source is not None and source.kind == PRIMITIVE:
            primitives.setdefault(entry.source, []).append(entry)
        elif source is not None:
            _promote(host, workflow, source, entry)
    for node_id, group in primitives.items():
        _promote_primitive(host, workflow, inside.nodes[node_id], group)
    for entry in entries:
        if entry.source == HOST:
            index = next((index for index, port in enumerate(inside.inputs) if port.name == entry.widget), None)
            if index is not None:
                _set(host, index, entry.value)


def _proxy_widgets(host: Node) -> list[list[str]]:
    found = host.properties.get("proxyWidgets")
    if isinstance(found, str):
        try:
            found = json.loads(found)
        except (ValueError, RecursionError):
            return []
    entries = _list(found)
    fits = all(
        isinstance(entry, list) and len(entry) in (2, 3) and all(isinstance(part, str) for part in entry)
        for entry in entries
    )
    return entries if fits else []


def _entry(inside: Section, workflow: Workflow, names: list[str], value: Any) -> _Entry:
    source, widget, inner = names[0], names[1], names[2] if len(names) > 2 else None
    if _exists(inside, workflow, source, widget, 0):
        return _Entry(source, widget, value, inner)
    while (match := PREFIX.match(widget)) is not None:
        inner, widget = match[1], match[2]
    return _Entry(source, widget, value, inner)


def _exists(inside: Section, workflow: Workflow, source: str, widget: str, depth: int) -> bool:
    node = inside.nodes.get(source)
    if node is None or depth > MAX_DEPTH:
        return False
    nested = workflow.subgraphs.get(node.kind)
    if nested is None:
        return node.widget(widget) is not None or (node.kind == PRIMITIVE and widget == "value")
    port = next((port for port in nested.inputs if port.name == widget), None)
    target = None if port is None else _target(nested, workflow, port)
    return target is not None and _exists(nested, workflow, *target, depth + 1)


def _target(inside: Section, workflow: Workflow, port: Port) -> tuple[str, str] | None:
    """Return the (node, widget) inside that an input of a subgraph stands for."""
    for node_id, index in port.ends:
        node = inside.nodes[node_id]
        name = node.inputs[index].name
        if node.kind in workflow.subgraphs or node.widget(name) is not None:
            return node_id, name
    return None


def _place(inside: Section, workflow: Workflow, entry: _Entry) -> int | None:
    """Return the index of the input that stands for a promoted widget already."""
    found = (index for index, port in enumerate(inside.inputs) if _target(inside, workflow, port) == _key(entry))
    return next(found, None)


def _key(entry: _Entry) -> tuple[str, str]:
    return entry.source, entry.widget


def _promote(host: Node, workflow: Workflow, source: Node, entry: _Entry) -> None:
    """Add an input to the subgraph for a widget of a node inside."""
    if entry.widget.startswith(PREVIEW_PREFIX):
        return
    index = _widget_input(source, workflow, entry)
    if index is None:
        return
    number = _add_input(workflow, host, entry.widget, source.inputs[index].kind, [(source, index)])
    _set(host, number, entry.value)


def _widget_input(source: Node, workflow: Workflow, entry: _Entry) -> int | None:
    """Return the index of the input that belongs to a widget of a node inside."""
    nested = workflow.subgraphs.get(source.kind)
    if nested is None:
        return source.index(entry.widget) if source.widget(entry.widget) is not None else None
    for index, port in enumerate(nested.inputs):
        target = _target(nested, workflow, port)
        if entry.inside is not None:
            fits = target == (entry.inside, entry.widget)
        else:
            fits = port.name == entry.widget or (target is not None and target[1] == entry.widget)
        if fits:
            return index if index in source.promoted else None
    return None


def _promote_primitive(host: Node, workflow: Workflow, primitive: Node, group: list[_Entry]) -> None:
    """Replace a primitive inside by an input of the subgraph."""
    inside = workflow.subgraphs[host.kind]
    known = primitive.properties.get("proxyBypassedToSubgraphInput")
    index = next((index for index, port in enumerate(inside.inputs) if port.name == known), None)
    if index is not None:
        for entry in group:
            _set(host, index, entry.value)
        return
    targets = [(node, node.inputs.index(slot)) for node, slot in inside.targets(primitive.id, 0)]
    if not targets or len({entry.widget for entry in group}) > 1:
        return
    kind = primitive.outputs[0] if primitive.outputs else "*"
    name = primitive.title if primitive.title != PRIMITIVE else group[0].widget
    number = _add_input(workflow, host, name, kind, targets)
    saved = primitive.saved_values if isinstance(primitive.saved_values, list) else []
    values = [entry.value for entry in group if entry.value is not _NOTHING] + saved[:1]
    if values:
        _set(host, number, values[0])
    primitive.properties["proxyBypassedToSubgraphInput"] = inside.inputs[number].name


def _add_input(workflow: Workflow, host: Node, name: str, kind: Any, targets: list[tuple[Node, int]]) -> int:
    """Add an input to a subgraph, link it, and give it a value in each use of the subgraph that is loaded."""
    inside = workflow.subgraphs[host.kind]
    taken = {port.name for port in inside.inputs}
    unique = next(text for text in _numbered(name) if text not in taken)
    number = len(inside.inputs)
    port = Port(unique, kind, [(node.id, index) for node, index in targets])
    for node, index in targets:
        for other in inside.inputs:
            other.ends = [end for end in other.ends if end != (node.id, index)]
        node.inputs[index].link = Link(SUBGRAPH_INPUT, number)
    inside.inputs.append(port)
    value = _inner_value(inside, port)
    for node in workflow.all_nodes():
        if node.kind == host.kind:
            node.inputs.append(Slot(unique, kind))
            if value is not _NOTHING:  # a node whose values are read later overwrites this one
                node.promoted[number] = value
    return number


def _numbered(name: str) -> Iterator[str]:
    yield name
    number = 1
    while True:
        yield f"{name}_{number}"
        number += 1


def _set(host: Node, index: int, value: Any) -> None:
    if value is not _NOTHING and index in host.promoted:
        host.promoted[index] = value


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
