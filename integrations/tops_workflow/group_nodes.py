"""Group nodes of early frontends, which the frontend turns into subgraphs when it loads a file.

``extra.groupNodes`` has the nodes of each group and the links between them. A node of the type ``workflow>NAME`` stands
for the group NAME: it has the inputs, outputs and widgets of the nodes inside that no link inside uses.
"""

from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from tops_workflow.formats import Graph, InvalidWorkflow
from tops_workflow.graphs import Definitions, Link, Node, Port, Section, Slot, Workflow, fits, make_node
from tops_workflow.saved_graph import GROUP_PREFIX, PRIMITIVE, SUBGRAPH_INPUT, VIRTUAL, SavedNode
from tops_workflow.widgets import MISSING, inputs_of, node_widgets


def _with_id(node: Any) -> Any:
    return node | {"id": "0"} if isinstance(node, dict) else node


def _links(rows: Any) -> Any:
    """Return the rows that begin with numbers; the source of a link from outside the group is None."""
    rows = rows if isinstance(rows, list) else []
    return [row for row in rows if isinstance(row, list) and all(isinstance(part, int | None) for part in row[:2])]


class _SavedGroup(BaseModel):
    """An entry of ``extra.groupNodes``; links are (source index, slot, target index, slot, ...)."""

    model_config = ConfigDict(extra="ignore")

    nodes: list[Annotated[SavedNode, BeforeValidator(_with_id)]]
    links: Annotated[list[list[Any]], BeforeValidator(_links)] = Field(default_factory=list)
    external: Annotated[list[list[Any]], BeforeValidator(_links)] = Field(default_factory=list)


@dataclass
class _Group:
    """A group with the names that its node shows: inputs as (index, input), outputs as (index, slot)."""

    saved: _SavedGroup
    inputs: dict[str, tuple[int, str]] = field(default_factory=dict)
    outputs: list[tuple[int, int]] = field(default_factory=list)


def expand_groups(workflow: Workflow, graph: Graph, definitions: Definitions) -> None:
    """Replace each group node in the root by a subgraph; a group with nodes of unknown classes stays as it is.

    Raises
    ------
    InvalidWorkflow
        If the description of a group that is used is damaged.
    """
    extra = graph.get("extra")
    groups = extra.get("groupNodes") if isinstance(extra, dict) else None
    if not isinstance(groups, dict):
        return
    for node in list(workflow.root.nodes.values()):
        name = node.kind.removeprefix(GROUP_PREFIX)
        if not node.kind.startswith(GROUP_PREFIX) or name not in groups:
            continue
        group = _read(name, groups[name])
        if all(inner.type in definitions or inner.type in VIRTUAL for inner in group.saved.nodes):
            _find_inputs(group, definitions)
            _find_outputs(group, definitions)
            _replace(workflow, node, group, definitions)


def _read(name: str, data: Any) -> _Group:
    try:
        return _Group(_SavedGroup.model_validate(data))
    except ValidationError as error:
        raise InvalidWorkflow(f"The workflow is damaged: the group node {name[:40]!r} is not readable.") from error


def _find_inputs(group: _Group, definitions: Definitions) -> None:
    """Name the sockets that no link inside uses, as the frontend does where two nodes have the same."""
    seen: dict[str, int] = {}
    for index, node in enumerate(group.saved.nodes):
        definition = definitions.get(node.type)
        entries = inputs_of(definition) if definition is not None else []
        for entry in [entry for entry in entries if entry.is_widget]:
            _name(node, entry.name, seen)
        if node.type == PRIMITIVE:
            _name(node, "value", seen)
        for place, entry in enumerate(entry for entry in entries if not entry.is_widget):
            saved = [number for number, slot in enumerate(node.inputs) if slot.name == entry.name]
            slot = saved[0] if saved else place
            if not any(link[2:4] == [index, slot] and link[0] is not None for link in group.saved.links):
                group.inputs[_name(node, entry.name, seen)] = (index, entry.name)


def _name(node: SavedNode, name: str, seen: dict[str, int]) -> str:
    key = shown = name
    if name in seen or (node.type == PRIMITIVE and node.title):
        prefix = node.title or node.type
        key = shown = f"{prefix} {name}"
        if key in seen:
            shown = f"{prefix} {seen[key]} {name}"
    seen[key] = seen.get(key, 1) + 1
    return shown


def _find_outputs(group: _Group, definitions: Definitions) -> None:
    inside = {(link[0], link[1]) for link in group.saved.links if len(link) > 1}
    outside = {(entry[0], entry[1]) for entry in group.saved.external if len(entry) > 1}
    for index, node in enumerate(group.saved.nodes):
        definition = definitions.get(node.type)
        count = len(definition["output"]) if definition is not None else int(node.type in VIRTUAL)
        places = [(index, slot) for slot in range(count)]
        group.outputs += [place for place in places if place not in inside or place in outside]


def _replace(workflow: Workflow, host: Node, group: _Group, definitions: Definitions) -> None:
    """Put a subgraph in the place of a group node; all its nodes get new ids, that of the subgraph last."""
    nodes = []
    for saved in group.saved.nodes:
        workflow.last_id += 1
        nodes.append(make_node(saved, str(workflow.last_id), {}, definitions))
    _give_values(host, group, nodes, definitions)
    workflow.last_id += 1
    key = f"{host.kind} {workflow.last_id}"
    section = Section({node.id: node for node in nodes})
    for link in group.saved.links:
        if len(link) > 3 and all(isinstance(part, int) for part in link[:4]):
            source, slot, target, place = link[:4]
            if _can_link(nodes, source, slot, target, place):
                nodes[target].inputs[place].link = Link(nodes[source].id, slot)
    new = Node(str(workflow.last_id), key, 0, host.title, {}, None)
    for name, (index, input_name) in group.inputs.items():
        outer, inner = host.index(name), nodes[index].index(input_name)
        if outer is None or inner is None or host.inputs[outer].link is None:
            continue
        nodes[index].inputs[inner].link = Link(SUBGRAPH_INPUT, len(new.inputs))
        section.inputs.append(Port(name, host.inputs[outer].kind, [(nodes[index].id, inner)]))
        new.inputs.append(Slot(name, host.inputs[outer].kind, host.inputs[outer].link))
    section.outputs = [Port("", "*", [(nodes[index].id, slot)]) for index, slot in group.outputs]
    new.outputs = ["*" for _ in group.outputs]
    workflow.subgraphs[key] = section
    root = workflow.root.nodes
    del root[host.id]
    root[new.id] = new
    for node in root.values():
        for entry in node.inputs:
            if entry.link is not None and entry.link.source == host.id:
                entry.link = Link(new.id, entry.link.slot)


def _can_link(nodes: list[Node], source: int, slot: int, target: int, place: int) -> bool:
    if not (0 <= source < len(nodes) and 0 <= target < len(nodes)):
        return False
    outputs, inputs = nodes[source].outputs, nodes[target].inputs
    return 0 <= slot < len(outputs) and 0 <= place < len(inputs) and fits(outputs[slot], inputs[place].kind)


def _give_values(host: Node, group: _Group, nodes: list[Node], definitions: Definitions) -> None:
    """Give the nodes inside the values that the group node was saved with, in order."""
    saved = iter(host.saved_values if isinstance(host.saved_values, list) else [])
    for node, inner in zip(nodes, group.saved.nodes, strict=True):
        definition = definitions.get(node.kind)
        if definition is not None:
            sockets = {slot.name for slot in inner.inputs if slot.is_widget}
            own = {widget.name: widget.value for widget in node.widgets}

            def take(name: str, default: Any, sockets: set[str] = sockets, own: dict[str, Any] = own) -> Any:
                return own.get(name, default) if name in sockets else next(saved, default)

            node.widgets = node_widgets(definition, take)
        elif node.kind == PRIMITIVE:
            value = next(saved, MISSING)
            control = next(saved, MISSING)
            if value is not MISSING:
                node.saved_values = [value, control]
