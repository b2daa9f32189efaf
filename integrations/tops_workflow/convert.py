"""Convert a saved graph to a prompt, by the rules of the frontend.

Notes and muted nodes are left out, bypassed nodes pass on an input, reroutes and primitives are replaced by the links
and values they pass on, and the nodes of subgraphs get ids such as ``4:2``. A node of an unknown class without links is
left out: it is a decoration of a node pack that is not installed.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, TypeGuard

from tops_workflow.definitions import Definition
from tops_workflow.formats import Graph, InvalidWorkflow, Prompt
from tops_workflow.graphs import Node, Section, Workflow, fits, read_graph
from tops_workflow.group_nodes import expand_groups
from tops_workflow.primitives import apply_primitives
from tops_workflow.promotions import promote_values
from tops_workflow.saved_graph import BYPASSED, MUTED, REROUTE, SUBGRAPH_INPUT, VIRTUAL
from tops_workflow.texts import SAVE_NODES, choose, fill_patterns
from tops_workflow.widgets import MISSING, Widget

MAX_DEPTH, MAX_HOPS, MAX_NODES = 32, 300, 20_000


@dataclass
class _Use:
    """A section of the workflow in use: the root, or one use of a subgraph. ``prefix`` begins the ids of its nodes."""

    section: Section
    prefix: str = ""
    parent: "_Use | None" = None
    host: Node | None = None
    inner: dict[str, "_Use"] = field(default_factory=dict)


@dataclass(frozen=True)
class _Value:
    """The value of a promoted widget, which an input receives in place of a link."""

    value: Any


_Origin = list[Any] | _Value | None


def graph_to_prompt(graph: Graph, definitions: Mapping[str, Definition]) -> Prompt:
    """Return the prompt that the frontend sends to run this graph.

    Parameters
    ----------
    definitions : of the node classes, as ``/object_info`` gives them. A linked node of another class keeps its links
        and loses its widgets, whose names are not known; :func:`~tops_workflow.check.check_prompt` reports it.

    Raises
    ------
    InvalidWorkflow
        If the graph is damaged: a node without id or type, a link from a node that does not exist, a subgraph inside
        itself.
    """
    workflow = read_graph(graph, definitions)
    expand_groups(workflow, graph, definitions)
    promote_values(workflow)
    apply_primitives(workflow)
    return _Converter(workflow, definitions).convert()


class _Converter:
    """The conversion of one workflow."""

    def __init__(self, workflow: Workflow, definitions: Mapping[str, Definition]) -> None:
        self._subgraphs = workflow.subgraphs
        self._definitions = definitions
        self._root = _Use(workflow.root)
        self._nodes = list(workflow.all_nodes())
        self._now = datetime.now()

    def convert(self) -> Prompt:
        prompt: Prompt = {}
        for use, node in self._running(self._root, 0):
            prompt[use.prefix + node.id] = {
                "class_type": node.kind,
                "inputs": self._inputs(use, node),
                "_meta": _meta(node),
            }
            if len(prompt) > MAX_NODES:
                raise InvalidWorkflow(f"The workflow has more than {MAX_NODES} nodes.")
        for entry in prompt.values():
            lost = [name for name, value in entry["inputs"].items() if is_link(value) and value[0] not in prompt]
            for name in lost:
                del entry["inputs"][name]
        return prompt

    def _running(self, use: _Use, depth: int) -> Iterator[tuple[_Use, Node]]:
        """Yield every node that takes part in a run, the nodes of subgraphs in place of the node that uses them."""
        if depth > MAX_DEPTH:
            raise InvalidWorkflow("The workflow's subgraphs contain each other, or are nested too deeply.")
        for node in use.section.nodes.values():
            is_off = node.mode in (MUTED, BYPASSED)
            if node.kind in self._subgraphs:
                # The frontend looks at the mode of a subgraph's node in the root only: it sets that of the inner nodes.
                if depth > 0 or not is_off:
                    yield from self._running(self._enter(use, node), depth + 1)
            elif not is_off and node.kind not in VIRTUAL and not use.section.is_decoration(node):
                yield use, node

    def _enter(self, use: _Use, node: Node) -> _Use:
        if node.id not in use.inner:
            use.inner[node.id] = _Use(self._subgraphs[node.kind], f"{use.prefix}{node.id}:", use, node)
        return use.inner[node.id]

    def _inputs(self, use: _Use, node: Node) -> dict[str, Any]:
        inputs: dict[str, Any] = {}
        for widget in node.widgets:
            if widget.entry is not None and widget.value is not MISSING:
                inputs[widget.name] = _sent(widget, self._text(node, widget))
        for index, slot in enumerate(node.inputs):
            origin = self._input(use, node, index, None, 0)
            if isinstance(origin, _Value):
                inputs[slot.name] = _wrapped(origin.value)
            elif origin is not None:
                inputs[slot.name] = origin
        return inputs

    def _text(self, node: Node, widget: Widget) -> Any:
        if not isinstance(widget.value, str):
            return widget.value
        if widget.name == "filename_prefix" and node.kind in SAVE_NODES:
            return fill_patterns(widget.value, self._nodes, self._now)
        if widget.entry is not None and widget.entry.options.get("dynamicPrompts") is True:
            return choose(widget.value)
        return widget.value

    def _input(self, use: _Use, node: Node, index: int, kind: Any, hops: int) -> _Origin:
        """Return the source of an input; None if no running node feeds it. ``kind`` is the type at the links' end."""
        if hops > MAX_HOPS:
            raise InvalidWorkflow("The workflow is damaged: links lead in a circle.")
        if not 0 <= index < len(node.inputs):
            return None
        slot = node.inputs[index]
        if slot.link is None:
            return None
        if slot.link.source == SUBGRAPH_INPUT and use.parent is not None and use.host is not None:
            return self._outside(use.parent, use.host, slot.link.slot, hops)
        return self._output(
            use, _source(use, slot.link.source), slot.link.slot, slot.kind if kind is None else kind, hops + 1
        )

    def _outside(self, use: _Use, host: Node, index: int, hops: int) -> _Origin:
        """Return the source of input ``index`` of a node that stands for a subgraph."""
        if not 0 <= index < len(host.inputs):
            return None
        if host.inputs[index].link is None:
            return _Value(host.promoted[index]) if index in host.promoted else None
        return self._input(use, host, index, None, hops + 1)

    def _output(self, use: _Use, node: Node, slot: int, kind: Any, hops: int) -> _Origin:
        """Return the source of an output's value, through reroutes, bypassed nodes and subgraphs."""
        if node.mode == MUTED:
            return None
        if node.mode == BYPASSED:
            passed = _bypass(node, slot, kind)
            return None if passed is None else self._input(use, node, passed, None, hops + 1)
        if node.kind in self._subgraphs:
            return self._inside(self._enter(use, node), slot, kind, hops)
        if node.kind in VIRTUAL:
            return self._input(use, node, slot, kind, hops + 1) if node.kind == REROUTE else None
        return [use.prefix + node.id, slot]

    def _inside(self, use: _Use, slot: int, kind: Any, hops: int) -> _Origin:
        """Return the source of the value of a subgraph's output."""
        ports = use.section.outputs
        if not 0 <= slot < len(ports) or not ports[slot].ends:
            return None
        source, source_slot = ports[slot].ends[0]
        if source == SUBGRAPH_INPUT and use.parent is not None and use.host is not None:
            return self._outside(use.parent, use.host, source_slot, hops)
        node = use.section.nodes.get(source)
        if node is None:
            raise InvalidWorkflow(
                f"The workflow is damaged: a link begins at node {source[:40]}, which does not exist."
            )
        if hops > MAX_HOPS:
            raise InvalidWorkflow("The workflow is damaged: links lead in a circle.")
        return self._output(use, node, source_slot, kind, hops + 1)


def is_link(value: Any) -> TypeGuard[list[Any]]:
    """Return whether a prompt's input is a link, ``[node id, output slot]``."""
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], str | int) and isinstance(value[1], int)


def unwrapped(value: Any) -> Any:
    """Return the value of ``{"__value__": ...}``; a list that looks like a link stays wrapped."""
    if isinstance(value, dict) and "__value__" in value and not is_link(value["__value__"]):
        return value["__value__"]
    return value


def _source(use: _Use, node_id: str) -> Node:
    node = use.section.nodes.get(node_id)
    if node is None:
        raise InvalidWorkflow(f"The workflow is damaged: a link begins at node {node_id[:40]}, which does not exist.")
    return node


def _meta(node: Node) -> dict[str, Any]:
    meta = {"title": node.title}
    for name in ("cnr_id", "aux_id", "ver"):
        if isinstance(node.properties.get(name), str) and node.properties[name]:
            meta[name] = node.properties[name]
    return meta


def _sent(widget: Widget, value: Any) -> Any:
    if widget.entry is not None and widget.entry.widget_kind == "CURVE" and value is not None:
        return {"__type__": "CURVE", "__value__": value}
    return _wrapped(value)


def _wrapped(value: Any) -> Any:
    """Return a value so that no server reads it as a link."""
    return {"__value__": value} if isinstance(value, list) else value


def _bypass(node: Node, slot: int, kind: Any) -> int | None:
    """Return the input that a bypassed node passes on for an output."""
    inputs = node.inputs
    if kind in ("*", ""):
        return slot if 0 <= slot < len(inputs) else 0 if inputs else None
    output = node.outputs[slot] if 0 <= slot < len(node.outputs) else "*"
    if 0 <= slot < len(inputs) and fits(inputs[slot].kind, output) and fits(inputs[slot].kind, kind):
        return slot
    exact = (index for index, entry in enumerate(inputs) if entry.kind == kind)
    near = (index for index, entry in enumerate(inputs) if fits(entry.kind, output) and fits(entry.kind, kind))
    first = next(exact, None)
    return next(near, None) if first is None else first
