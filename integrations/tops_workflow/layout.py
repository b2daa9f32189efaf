"""Convert a prompt to a graph that the frontend can open and edit."""

import itertools
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from tops_engine.errors import shorten
from tops_workflow.convert import is_link
from tops_workflow.definitions import Definition
from tops_workflow.formats import Graph, InvalidWorkflow, Prompt
from tops_workflow.growing import AUTOGROW
from tops_workflow.order import sources_first, sources_of
from tops_workflow.saved_values import write_values
from tops_workflow.widgets import Input, inputs_of

#: Pixels from one column to the next; of a node without its inputs, and its width; and between the nodes of a column,
#: where the title of the lower one and the button for advanced inputs of the upper one lie.
COLUMN, ROW, WIDTH, GAP = 380, 60, 320, 90


def prompt_to_graph(prompt: Prompt, definitions: Mapping[str, Definition]) -> Graph:
    """Return a graph that gives this prompt, its nodes in columns from left to right.

    Raises
    ------
    InvalidWorkflow
        If the prompt has nodes of classes that are not in ``definitions``, or links in a circle.
    """
    unknown = sorted({str(node["class_type"]) for node in prompt.values()} - set(definitions))
    if unknown:
        raise InvalidWorkflow(
            f"Unknown node classes: {shorten(', '.join(unknown))}; the names of their widgets are unknown."
        )
    return _Layout(prompt, definitions).graph()


class _Layout:
    """The state of one conversion."""

    def __init__(self, prompt: Prompt, definitions: Mapping[str, Definition]) -> None:
        self._prompt = prompt
        self._definitions = definitions
        self._numbers = _numbers(prompt)
        self._links: list[list[Any]] = []
        self._readers: dict[tuple[str, int], list[int]] = defaultdict(list)

    def graph(self) -> Graph:
        heights = {node_id: _height(self._definitions[node["class_type"]]) for node_id, node in self._prompt.items()}
        places = _places(self._prompt, heights)
        nodes = [self._node(order, node_id, places[node_id]) for order, node_id in enumerate(self._prompt)]
        for node_id, node in zip(self._prompt, nodes, strict=True):
            node["outputs"] = self._outputs(node_id)
        return {
            "last_node_id": max(self._numbers.values(), default=0),
            "last_link_id": len(self._links),
            "nodes": nodes,
            "links": self._links,
            "groups": [],
            "config": {},
            "extra": {},
            "version": 0.4,
        }

    def _node(self, order: int, node_id: str, place: list[int]) -> dict[str, Any]:
        kind = self._prompt[node_id]["class_type"]
        definition = self._definitions[kind]
        values = self._prompt[node_id].get("inputs", {})
        own = {name: _plain(value) for name, value in values.items() if not is_link(value)}
        return {
            "id": self._numbers[node_id],
            "type": kind,
            "pos": place,
            "size": [WIDTH, _height(definition)],
            "flags": {},
            "order": order,
            "mode": 0,
            "inputs": self._sockets(node_id, inputs_of(definition), values),
            "properties": {"Node name for S&R": kind},
            "widgets_values": write_values(definition, own),
        }

    def _sockets(self, node_id: str, entries: list[Input], values: dict[str, Any]) -> list[dict[str, Any]]:
        """Return the inputs with their links; an input that is a widget is listed only if it is linked."""
        inputs: list[dict[str, Any]] = []
        known = {entry.name for entry in entries}
        plain = [(entry.name, entry.kind, entry.is_widget) for entry in entries]
        others = [(name, "*", False) for name in values if name not in known]
        for name, kind, is_widget in [*plain, *others]:
            value = values.get(name)
            link = value if is_link(value) and str(value[0]) in self._prompt else None
            if link is None and (is_widget or name not in known or kind == AUTOGROW):
                continue
            socket: dict[str, Any] = {"name": name, "type": kind, "link": None}
            if is_widget:
                socket["widget"] = {"name": name}
            if link is not None:
                socket["link"] = self._link(str(link[0]), link[1], node_id, len(inputs))
            inputs.append(socket)
        return inputs

    def _link(self, source: str, slot: int, target: str, place: int) -> int:
        number = len(self._links) + 1
        outputs = self._definitions[self._prompt[source]["class_type"]]["output"]
        kind = outputs[slot] if 0 <= slot < len(outputs) else "*"
        self._links.append([number, self._numbers[source], slot, self._numbers[target], place, kind])
        self._readers[source, slot].append(number)
        return number

    def _outputs(self, node_id: str) -> list[dict[str, Any]]:
        definition = self._definitions[self._prompt[node_id]["class_type"]]
        names = definition.get("output_name") or definition["output"]
        return [
            {"name": name, "type": kind, "links": self._readers.get((node_id, slot)) or None}
            for slot, (name, kind) in enumerate(zip(names, definition["output"], strict=False))
        ]


def _plain(value: Any) -> Any:
    return value["__value__"] if isinstance(value, dict) and "__value__" in value else value


def _numbers(prompt: Prompt) -> dict[str, int]:
    """Return the ids in the graph: those of the prompt where these are numbers, new ones for ``4:2`` and the like."""
    own = {node_id: int(node_id) for node_id in prompt if node_id.isdecimal() and len(node_id) < 16}
    taken: set[int] = set()
    numbers = {}
    for node_id, number in own.items():
        if number not in taken:
            taken.add(number)
            numbers[node_id] = number
    free = (number for number in itertools.count(1) if number not in taken)
    return {node_id: numbers[node_id] if node_id in numbers else next(free) for node_id in prompt}


def _places(prompt: Prompt, heights: Mapping[str, int]) -> dict[str, list[int]]:
    """Return a place for each node; its column is the number of nodes that run one after the other before it."""
    columns: dict[str, int] = {}
    for last in prompt:
        order, circles = sources_first(prompt, last, columns)
        if circles:
            raise InvalidWorkflow(f"The workflow goes in a circle: {shorten(' → '.join(circles[0]))}.")
        for node_id in order:
            columns[node_id] = 1 + max((columns[source] for source in sources_of(prompt, node_id)), default=-1)
    rows: dict[int, int] = defaultdict(int)
    places = {}
    for node_id in prompt:
        column = columns[node_id]
        places[node_id] = [column * COLUMN + 40, rows[column] + 40]
        rows[column] += heights[node_id] + GAP
    return places


def _height(definition: Definition) -> int:
    entries = inputs_of(definition)
    texts = sum(bool(entry.options.get("multiline")) for entry in entries)
    return ROW + 28 * max(len(entries), len(definition["output"])) + 60 * texts
