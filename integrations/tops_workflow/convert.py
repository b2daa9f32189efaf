"""Between the graph that people save and the prompt that servers run.

A graph becomes a prompt as the frontend does it: notes and muted nodes go, bypassed nodes pass on what fits, reroutes
and primitives dissolve, subgraphs are written out with ids such as ``4:2``.
"""

import itertools
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from tops_workflow.definitions import Definition
from tops_workflow.formats import Graph, InvalidWorkflow, Prompt
from tops_workflow.widgets import Input, inputs_of, widget_values

MUTED, BYPASSED = 2, 4
NOTES = ("Note", "MarkdownNote")
REROUTE, PRIMITIVE = "Reroute", "PrimitiveNode"

# Ids of the two ends of a subgraph, as the frontend numbers them.
SUBGRAPH_INPUT, SUBGRAPH_OUTPUT = "-10", "-20"

MAX_DEPTH, MAX_HOPS = 32, 300
COLUMN, ROW, WIDTH = 380, 60, 320


@dataclass(frozen=True)
class _Link:
    source: str
    source_slot: int
    target: str
    target_slot: int


@dataclass
class _Scope:
    """A graph, or one use of a subgraph inside another scope: ``prefix`` is what its nodes' ids begin with."""

    nodes: dict[str, dict[str, Any]]
    links: dict[Any, _Link]
    subgraphs: dict[str, Graph]
    prefix: str = ""
    parent: "_Scope | None" = None
    instance: dict[str, Any] = field(default_factory=dict)
    inner: dict[str, "_Scope"] = field(default_factory=dict)

    def full_id(self, node: dict[str, Any]) -> str:
        return f"{self.prefix}{node['id']}"


# A value that comes along a link: [node id, slot], or a constant of a primitive.
@dataclass(frozen=True)
class _Constant:
    value: Any


_Origin = list[Any] | _Constant | None


def graph_to_prompt(graph: Graph, definitions: Mapping[str, Definition]) -> Prompt:
    """What the frontend would send to run this graph.

    Parameters
    ----------
    definitions : of the node classes, as ``/object_info`` gives them. Nodes of other classes keep their links and lose
        their widgets, whose names nobody knows; :func:`~tops_workflow.check.check_prompt` reports them.

    Raises
    ------
    InvalidWorkflow
        If the graph is damaged: a node without id or type, links that lead nowhere, subgraphs inside themselves.
    """
    prompt: Prompt = {}
    for scope, node in _running_nodes(_read_scope(graph)):
        kind = node["type"]
        definition = definitions.get(kind)
        inputs: dict[str, Any] = {}
        if definition is not None:
            inputs |= widget_values(definition, node.get("widgets_values"))
        for name, origin in _linked_inputs(scope, node):
            if isinstance(origin, _Constant):
                inputs[name] = origin.value
            elif origin is not None:
                inputs[name] = origin
        title = node.get("title") or (definition or {}).get("display_name") or kind
        prompt[scope.full_id(node)] = {"class_type": kind, "inputs": inputs, "_meta": {"title": title}}
    return prompt


def _read_scope(graph: Graph) -> _Scope:
    subgraphs = {str(entry["id"]): entry for entry in graph.get("definitions", {}).get("subgraphs", [])}
    return _Scope(_nodes(graph), _links(graph), subgraphs)


def _nodes(graph: Graph) -> dict[str, dict[str, Any]]:
    nodes = {}
    for node in graph["nodes"]:
        if not isinstance(node, dict) or "id" not in node or not isinstance(node.get("type"), str):
            raise InvalidWorkflow("The workflow is damaged: a node has no id or no type.")
        nodes[str(node["id"])] = node
    return nodes


def _links(graph: Graph) -> dict[Any, _Link]:
    links = {}
    for link in graph.get("links") or []:
        try:
            if isinstance(link, dict):
                keys = ("id", "origin_id", "origin_slot", "target_id", "target_slot")
                number, source, source_slot, target, target_slot = (link[key] for key in keys)
            else:
                number, source, source_slot, target, target_slot = link[:5]
            links[number] = _Link(str(source), int(source_slot), str(target), int(target_slot))
        except (KeyError, TypeError, ValueError) as error:
            raise InvalidWorkflow(f"The workflow is damaged: {link!r} is no link.") from error
    return links


def _running_nodes(scope: _Scope, depth: int = 0) -> Iterator[tuple[_Scope, dict[str, Any]]]:
    """Every node that takes part in a run, subgraphs written out."""
    if depth > MAX_DEPTH:
        raise InvalidWorkflow("The workflow's subgraphs contain each other, or are nested too deeply.")
    for node in scope.nodes.values():
        if node.get("mode", 0) in (MUTED, BYPASSED) or node["type"] in (*NOTES, REROUTE, PRIMITIVE):
            continue
        if node["type"] in scope.subgraphs:
            yield from _running_nodes(_enter(scope, node), depth + 1)
        else:
            yield scope, node


def _enter(scope: _Scope, node: dict[str, Any]) -> _Scope:
    """The scope inside a node that stands for a subgraph."""
    key = str(node["id"])
    if key not in scope.inner:
        inside = scope.subgraphs[node["type"]]
        nested = {str(entry["id"]): entry for entry in inside.get("definitions", {}).get("subgraphs", [])}
        subgraphs = scope.subgraphs | nested
        prefix = f"{scope.full_id(node)}:"
        scope.inner[key] = _Scope(_nodes(inside), _links(inside), subgraphs, prefix, scope, node)
    return scope.inner[key]


def _linked_inputs(scope: _Scope, node: dict[str, Any]) -> Iterator[tuple[str, _Origin]]:
    for entry in node.get("inputs") or []:
        if entry.get("link") is not None:
            yield entry["name"], _origin(scope, entry["link"], 0)


def _origin(scope: _Scope, number: Any, hops: int) -> _Origin:
    """Where a link's value really comes from; None where it comes from nothing that runs."""
    link = scope.links.get(number)
    if link is None:
        raise InvalidWorkflow(f"The workflow is damaged: link {number} leads nowhere.")
    if hops > MAX_HOPS:
        raise InvalidWorkflow("The workflow is damaged: links lead in a circle.")
    if link.source == SUBGRAPH_INPUT:
        return _origin_outside(scope, link.source_slot, hops)
    node = scope.nodes.get(link.source)
    if node is None:
        raise InvalidWorkflow(f"The workflow is damaged: a link begins at node {link.source}, which does not exist.")
    mode = node.get("mode", 0)
    if mode == MUTED:
        return None
    if node["type"] == PRIMITIVE:
        values = node.get("widgets_values") or [None]
        return _Constant(values[0])
    if node["type"] == REROUTE or mode == BYPASSED:
        slot = 0 if node["type"] == REROUTE else _bypass_slot(node, link.source_slot)
        passed = None if slot is None else node["inputs"][slot].get("link")
        return None if passed is None else _origin(scope, passed, hops + 1)
    if node["type"] in scope.subgraphs:
        inside = _enter(scope, node)
        for inner_number, inner in inside.links.items():
            if inner.target == SUBGRAPH_OUTPUT and inner.target_slot == link.source_slot:
                return _origin(inside, inner_number, hops + 1)
        return None
    return [scope.full_id(node), link.source_slot]


def _origin_outside(scope: _Scope, slot: int, hops: int) -> _Origin:
    """What is connected to input ``slot`` of the subgraph that this scope is a use of."""
    inputs = scope.instance.get("inputs") or []
    declared = scope.subgraphs[scope.instance["type"]].get("inputs") or []
    names = [declared[slot]["name"]] if slot < len(declared) else []
    entry = next((entry for entry in inputs if entry.get("name") in names), None)
    entry = entry or (inputs[slot] if slot < len(inputs) else None)
    if entry is None or entry.get("link") is None or scope.parent is None:
        return None
    return _origin(scope.parent, entry["link"], hops + 1)


def _bypass_slot(node: dict[str, Any], output_slot: int) -> int | None:
    """The input a bypassed node passes on for an output: that of the same place if it fits, else the first one."""
    outputs, inputs = node.get("outputs") or [], node.get("inputs") or []
    kind = outputs[output_slot].get("type") if output_slot < len(outputs) else None
    order = itertools.chain([output_slot] if output_slot < len(inputs) else [], range(len(inputs)))
    for slot in order:
        if inputs[slot].get("link") is not None and (
            "*" in (kind, inputs[slot].get("type")) or inputs[slot].get("type") == kind
        ):
            return slot
    return None


def prompt_to_graph(prompt: Prompt, definitions: Mapping[str, Definition]) -> Graph:
    """A graph one can open and edit, nodes in columns from left to right.

    Raises
    ------
    InvalidWorkflow
        If the prompt has nodes of classes that are not in ``definitions``, or links in a circle.
    """
    unknown = sorted({node["class_type"] for node in prompt.values()} - set(definitions))
    if unknown:
        raise InvalidWorkflow(f"Nodes nobody here knows: {', '.join(map(str, unknown))}; their widgets have no names.")
    places = _places(prompt)
    numbers = _numbers(prompt)
    nodes: list[dict[str, Any]] = []
    links: list[list[Any]] = []
    readers: dict[tuple[str, int], list[int]] = defaultdict(list)
    for order, (node_id, node) in enumerate(prompt.items()):
        definition = definitions[node["class_type"]]
        inputs: list[dict[str, Any]] = []
        for entry in inputs_of(definition):
            value = node.get("inputs", {}).get(entry.name)
            linked = is_link(value) and str(value[0]) in prompt
            if entry.is_widget and not linked:
                continue
            socket: dict[str, Any] = {"name": entry.name, "type": entry.kind, "link": None}
            if entry.is_widget:
                socket["widget"] = {"name": entry.name}
            if linked:
                number = len(links) + 1
                source = str(value[0])
                links.append([number, numbers[source], value[1], numbers[node_id], len(inputs), entry.kind])
                readers[source, value[1]].append(number)
                socket["link"] = number
            inputs.append(socket)
        nodes.append(
            {
                "id": numbers[node_id],
                "type": node["class_type"],
                "pos": places[node_id],
                "size": [WIDTH, _height(definition)],
                "flags": {},
                "order": order,
                "mode": 0,
                "inputs": inputs,
                "properties": {"Node name for S&R": node["class_type"]},
                "widgets_values": _values(definition, node.get("inputs", {})),
            }
        )
    for node_id, node, saved in zip(prompt, prompt.values(), nodes, strict=True):
        definition = definitions[node["class_type"]]
        names = definition.get("output_name") or definition["output"]
        saved["outputs"] = [
            {"name": name, "type": kind, "links": readers.get((node_id, slot)) or None}
            for slot, (name, kind) in enumerate(zip(names, definition["output"], strict=False))
        ]
        for number in itertools.chain.from_iterable(readers.get((node_id, slot), []) for slot in range(len(names))):
            links[number - 1][5] = definition["output"][links[number - 1][2]]
    return {
        "last_node_id": max(numbers.values(), default=0),
        "last_link_id": len(links),
        "nodes": nodes,
        "links": links,
        "groups": [],
        "config": {},
        "extra": {},
        "version": 0.4,
    }


def is_link(value: Any) -> bool:
    """Whether a prompt's input is a link, ``[node id, output slot]``."""
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], str | int) and isinstance(value[1], int)


def _numbers(prompt: Prompt) -> dict[str, int]:
    """Graph ids of a prompt's nodes: their own where these are numbers, new ones for ``4:2`` and the like."""
    taken = {int(node_id) for node_id in prompt if node_id.isdecimal()}
    free = (number for number in itertools.count(1) if number not in taken)
    return {node_id: int(node_id) if node_id.isdecimal() else next(free) for node_id in prompt}


def _values(definition: Definition, inputs: dict[str, Any]) -> list[Any]:
    values: list[Any] = []
    for entry in inputs_of(definition):
        if entry.is_widget:
            value = inputs.get(entry.name, entry.default)
            values += [entry.default if is_link(value) else value, *entry.extra_slots]
    return values


def _places(prompt: Prompt) -> dict[str, list[int]]:
    """Columns by how many nodes have to run before."""
    depths: dict[str, int] = {}

    def depth(node_id: str, path: tuple[str, ...]) -> int:
        if node_id in path:
            raise InvalidWorkflow(f"The workflow goes in a circle: {' → '.join([*path, node_id])}.")
        if node_id not in depths:
            values = prompt[node_id].get("inputs", {}).values()
            sources = [str(value[0]) for value in values if is_link(value) and str(value[0]) in prompt]
            depths[node_id] = 1 + max((depth(source, (*path, node_id)) for source in sources), default=-1)
        return depths[node_id]

    rows: dict[int, int] = defaultdict(int)
    places = {}
    for node_id in prompt:
        column = depth(node_id, ())
        places[node_id] = [column * COLUMN + 40, rows[column] + 40]
        rows[column] += 360
    return places


def _height(definition: Definition) -> int:
    entries: list[Input] = inputs_of(definition)
    return (
        ROW
        + 28 * max(len(entries), len(definition["output"]))
        + 60 * sum(bool(entry.options.get("multiline")) for entry in entries)
    )
