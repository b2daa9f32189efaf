"""A saved graph as the frontend holds it after loading: nodes with their widgets, links by the inputs they reach."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from tops_workflow.definitions import Definition
from tops_workflow.formats import Graph
from tops_workflow.saved_graph import GROUP_PREFIX, SUBGRAPH_INPUT, SUBGRAPH_OUTPUT, SavedGraph, SavedNode, read_saved
from tops_workflow.saved_values import read_widgets
from tops_workflow.widgets import MATCH_TYPE, Widget, has_widget, inputs_of, sockets

Definitions = Mapping[str, Definition]

#: Uses of a subgraph that matter for its inputs: each pass removes half of those in a row.
MAX_PASSES = 8


@dataclass
class Link:
    """Where a value comes from: slot ``slot`` of node ``source``, or input ``slot`` of the subgraph."""

    source: str
    slot: int


@dataclass
class Slot:
    """An input of a node.

    Attributes
    ----------
    lacks_widget : whether it was saved as the input of a widget that the class no longer has.
    """

    name: str
    kind: Any
    link: Link | None = None
    lacks_widget: bool = False


@dataclass
class Node:
    """A node.

    Attributes
    ----------
    inputs : in the frontend's order, which decides what a bypassed node passes on.
    outputs : their types.
    widgets : of an ordinary node.
    promoted : of a node that stands for a subgraph: the values of its widgets by the index of their input.
    is_known : whether its class has a definition.
    """

    id: str
    kind: str
    mode: int
    title: str
    properties: dict[str, Any]
    saved_values: Any
    inputs: list[Slot] = field(default_factory=list)
    outputs: list[Any] = field(default_factory=list)
    widgets: list[Widget] = field(default_factory=list)
    promoted: dict[int, Any] = field(default_factory=dict)
    is_known: bool = True

    def widget(self, name: str) -> Widget | None:
        """Return the widget of an ordinary node."""
        return next((widget for widget in self.widgets if widget.name == name), None)

    def index(self, name: str) -> int | None:
        """Return the index of an input."""
        return next((index for index, slot in enumerate(self.inputs) if slot.name == name), None)


@dataclass
class Port:
    """An input or output of a subgraph; ``ends`` are the (node, slot) it is linked to inside, in order."""

    name: str
    kind: Any
    ends: list[tuple[str, int]] = field(default_factory=list)


@dataclass
class Section:
    """A graph, or the inside of a subgraph."""

    nodes: dict[str, Node] = field(default_factory=dict)
    inputs: list[Port] = field(default_factory=list)
    outputs: list[Port] = field(default_factory=list)

    def targets(self, node_id: str, slot: int) -> Iterator[tuple[Node, Slot]]:
        """Yield every input that an output of a node is linked to."""
        for node in self.nodes.values():
            for entry in node.inputs:
                if entry.link is not None and (entry.link.source, entry.link.slot) == (node_id, slot):
                    yield node, entry

    def is_decoration(self, node: Node) -> bool:
        """Return whether a node is of an unknown class and has no links, so that no other node can need it."""
        if node.is_known or any(slot.link is not None for slot in node.inputs):
            return False
        sources = {slot.link.source for other in self.nodes.values() for slot in other.inputs if slot.link is not None}
        return node.id not in sources | {source for port in self.outputs for source, _ in port.ends}


@dataclass
class Workflow:
    """A loaded graph.

    Attributes
    ----------
    root : what the user sees first.
    subgraphs : by id.
    last_id : the largest number of a node, or a larger one.
    """

    root: Section
    subgraphs: dict[str, Section]
    last_id: int = 0

    def sections(self) -> list[Section]:
        return [self.root, *self.subgraphs.values()]

    def all_nodes(self) -> Iterator[Node]:
        for section in self.sections():
            yield from section.nodes.values()


def read_graph(graph: Graph, definitions: Definitions) -> Workflow:
    """Load a saved graph; subgraphs have no promoted values yet."""
    root, parts = read_saved(graph)
    _rename_group_nodes(root)
    renamed, last_id = _free_ids(root, parts)
    subgraphs = {part.id: part for part in parts}
    sections = {part.id: _section(part, subgraphs, definitions, renamed[part.id]) for part in parts}
    loaded = Workflow(_section(root, subgraphs, definitions, {}), sections, last_id)
    _remove_lost_inputs(loaded)
    for node in loaded.all_nodes():
        _rename_promotions(node, renamed.get(node.kind, {}))
    return loaded


def _rename_group_nodes(root: SavedGraph) -> None:
    for node in root.nodes:
        if node.type.startswith("workflow/"):
            node.type = GROUP_PREFIX + node.type.removeprefix("workflow/")


def _free_ids(root: SavedGraph, parts: list[SavedGraph]) -> tuple[dict[str, dict[str, str]], int]:
    """Return new ids for the nodes of subgraphs whose ids are taken: the frontend wants each id once."""
    taken = {node.id for node in root.nodes}
    last = max((n for n in (root.last_node_id, root.state.get("lastNodeId")) if isinstance(n, int)), default=0)
    renamed: dict[str, dict[str, str]] = {}
    for part in parts:
        new = renamed.setdefault(part.id, {})
        seen: set[str] = set()
        for node in part.nodes:
            if node.id in seen:
                continue
            seen.add(node.id)
            if node.id in taken:
                last += 1
                while str(last) in taken:
                    last += 1
                new[node.id] = str(last)
            elif node.id.isdecimal():
                last = max(last, int(node.id))
            taken.add(new.get(node.id, node.id))
    return renamed, max([last, *(int(node.id) for node in root.nodes if node.id.isdecimal())])


def _rename_promotions(node: Node, renamed: dict[str, str]) -> None:
    entries = node.properties.get("proxyWidgets")
    if renamed and isinstance(entries, list):
        node.properties["proxyWidgets"] = [
            [renamed.get(str(entry[0]), entry[0]), *entry[1:]] if isinstance(entry, list) and entry else entry
            for entry in entries
        ]


def _section(
    part: SavedGraph, subgraphs: Mapping[str, SavedGraph], definitions: Definitions, renamed: dict[str, str]
) -> Section:
    section = Section(
        inputs=[Port(slot.name, slot.type) for slot in part.inputs],
        outputs=[Port(slot.name, slot.type) for slot in part.outputs],
    )
    saved: dict[str, SavedNode] = {}
    for node in part.nodes:
        node_id = renamed.get(node.id, node.id)
        if node_id in section.nodes:
            continue  # the first of two nodes with the same id stays
        saved[node_id] = node
        section.nodes[node_id] = make_node(node, node_id, subgraphs, definitions)
    _add_links(section, part, saved, renamed)
    return section


def make_node(saved: SavedNode, node_id: str, subgraphs: Mapping[str, SavedGraph], definitions: Definitions) -> Node:
    """Return a saved node without its links."""
    definition, subgraph = definitions.get(saved.type), subgraphs.get(saved.type)
    named = (definition or {}).get("display_name") or (definition or {}).get("name")
    title = saved.title or named or (subgraph.name if subgraph is not None else None) or saved.type
    node = Node(node_id, saved.type, saved.mode, title, dict(saved.properties), saved.widgets_values)
    node.is_known = definition is not None
    if subgraph is not None:
        node.inputs = [Slot(slot.name, slot.type) for slot in subgraph.inputs]
        node.outputs = [slot.type for slot in subgraph.outputs]
        return node
    if definition is not None:
        node.widgets = read_widgets(definition, saved.widgets_values)
        node.inputs = [Slot(name, kind) for name, kind in sockets(inputs_of(definition))]
        node.outputs = [_output_type(kind) for kind in definition.get("output") or []]
    known = {slot.name for slot in node.inputs}
    for slot in saved.inputs:
        if slot.name not in known:
            new = Slot(slot.name, slot.type)
            if definition is not None and slot.is_widget:
                new.lacks_widget = not has_widget(definition, node.widgets, slot.widget_name)
            node.inputs.insert(_place_of(slot.name, node.inputs), new)
    node.outputs += [slot.type for slot in saved.outputs[len(node.outputs) :]]
    return node


def _place_of(name: str, inputs: list[Slot]) -> int:
    """Return the place of an input that the definition does not list: ``group.name`` after its group, others last."""
    group = name.rpartition(".")[0]
    same = [index for index, slot in enumerate(inputs) if group and (slot.name + ".").startswith(group + ".")]
    return same[-1] + 1 if same else len(inputs)


def _output_type(kind: Any) -> Any:
    return "COMBO" if isinstance(kind, list) else "*" if kind == MATCH_TYPE else kind


def _add_links(section: Section, part: SavedGraph, saved: dict[str, SavedNode], renamed: dict[str, str]) -> None:
    """Attach each link to the input it reaches: the one that was saved with its id, else the one at its place."""
    referenced = {slot.link for node in part.nodes for slot in node.inputs if slot.link is not None}
    ends: dict[Any, tuple[str, int]] = {}
    starts: dict[Any, tuple[str, int]] = {}
    places: dict[tuple[str, int], Any] = {}
    for link in part.links:
        place = (link.target_id, link.target_slot)
        if place in places and (places[place] in referenced or link.id not in referenced):
            continue  # one link for each input
        places[place] = link.id
    kept = set(places.values())
    for link in part.links:
        if link.id not in kept or link.id in starts:
            continue
        source = renamed.get(link.origin_id, link.origin_id)
        target = renamed.get(link.target_id, link.target_id)
        starts[link.id] = (source, link.origin_slot)
        if target == SUBGRAPH_OUTPUT:
            continue
        node = section.nodes.get(target)
        index = None if node is None else _target_index(node, saved[target], link.id, link.target_slot)
        if node is not None and index is not None:
            node.inputs[index].link = Link(source, link.origin_slot)
            if source == SUBGRAPH_INPUT:
                ends[link.id] = (target, index)
    by_slot = [link for link in part.links if link.id in starts]
    for number, port in enumerate(section.inputs):
        own = [link.id for link in by_slot if link.origin_id == SUBGRAPH_INPUT and link.origin_slot == number]
        port.ends = [ends[key] for key in part.inputs[number].link_ids or own if key in ends]
    for number, port in enumerate(section.outputs):
        own = [link.id for link in by_slot if link.target_id == SUBGRAPH_OUTPUT and link.target_slot == number]
        port.ends = [starts[key] for key in part.outputs[number].link_ids or own if key in starts]


def _remove_lost_inputs(workflow: Workflow) -> None:
    """Remove the inputs of widgets that a class no longer has, with their links.

    The frontend goes through the inputs of a node once for each use of its graph, and skips the one after a removed
    one.
    """
    uses: Counter[str] = Counter()
    waiting = [workflow.root]
    while waiting:
        section = waiting.pop()
        _remove_some_lost_inputs(section)
        for node in section.nodes.values():
            if node.kind in workflow.subgraphs and uses[node.kind] < MAX_PASSES:
                uses[node.kind] += 1
                waiting.append(workflow.subgraphs[node.kind])


def _remove_some_lost_inputs(section: Section) -> None:
    for node in section.nodes.values():
        index = 0
        while index < len(node.inputs):
            if node.inputs[index].lacks_widget:
                del node.inputs[index]
                for port in section.inputs:
                    port.ends = [
                        (target, place - (target == node.id and place > index))
                        for target, place in port.ends
                        if (target, place) != (node.id, index)
                    ]
            index += 1


def _target_index(node: Node, saved: SavedNode, link: Any, place: int) -> int | None:
    names = [slot.name for slot in saved.inputs if slot.link == link]
    if not names and 0 <= place < len(saved.inputs):
        names = [saved.inputs[place].name]
    found = [index for index, slot in enumerate(node.inputs) if slot.name in names]
    if not found:
        return place if 0 <= place < len(node.inputs) else None
    free = [index for index in found if node.inputs[index].link is None]
    return place if place in found else (free or found)[0]


def fits(one: Any, other: Any) -> bool:
    """Return whether the frontend lets an output of one type be linked to an input of the other."""
    if one in ("", "*", 0, None) or other in ("", "*", 0, None) or one == other:
        return True
    kinds = [set(str(kind).lower().split(",")) for kind in (one, other)]
    return "*" in kinds[0] | kinds[1] or bool(kinds[0] & kinds[1])
