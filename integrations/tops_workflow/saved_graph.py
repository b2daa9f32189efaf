"""Checked content of a saved graph: nodes, links and subgraphs, in the formats of every version of the frontend."""

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from tops_workflow.formats import Graph, InvalidWorkflow

MUTED, BYPASSED = 2, 4

#: Node types that exist in the frontend only.
NOTES = ("Note", "MarkdownNote")
REROUTE, PRIMITIVE = "Reroute", "PrimitiveNode"
VIRTUAL = (*NOTES, REROUTE, PRIMITIVE)

#: Types of nodes that stand for a group of ``extra.groupNodes`` begin with this.
GROUP_PREFIX = "workflow>"

#: Ids of the two ends of a subgraph, as the frontend numbers them.
SUBGRAPH_INPUT, SUBGRAPH_OUTPUT = "-10", "-20"

MAX_SUBGRAPHS = 1000


def _list(value: Any) -> Any:
    return [] if value is None else value


def _dict(value: Any) -> Any:
    return value if isinstance(value, dict) else {}


def _text(value: Any) -> Any:
    return value if isinstance(value, str) else str(value) if isinstance(value, int) else None


def _link(value: Any) -> Any:
    names = ("id", "origin_id", "origin_slot", "target_id", "target_slot")
    return dict(zip(names, value, strict=False)) if isinstance(value, list | tuple) else value


NodeId = Annotated[str, BeforeValidator(lambda value: str(value) if isinstance(value, int) else value)]
LinkId = int | str
Values = Annotated[dict[str, Any], BeforeValidator(_dict)]


class Saved(BaseModel):
    """The base class of the parts of a saved graph; fields of the frontend that are not listed are ignored."""

    model_config = ConfigDict(extra="ignore")


class SavedSlot(Saved):
    """An input or output of a node, or of a subgraph."""

    name: str = ""
    type: Any = "*"
    link: LinkId | None = None
    link_ids: list[LinkId] | None = Field(default=None, alias="linkIds")
    widget: Any = None

    @property
    def is_widget(self) -> bool:
        return self.widget is not None

    @property
    def widget_name(self) -> str:
        """The name of the widget that the input belongs to; empty if the graph does not say it."""
        return str(_dict(self.widget).get("name", ""))


class SavedLink(Saved):
    """A link from an output to an input."""

    id: LinkId
    origin_id: NodeId
    origin_slot: int
    target_id: NodeId
    target_slot: int


class SavedNode(Saved):
    """A node; ``type`` is its class or the id of a subgraph."""

    id: NodeId
    type: str
    mode: Annotated[int, BeforeValidator(lambda value: value if isinstance(value, int) else 0)] = 0
    title: Annotated[str | None, BeforeValidator(_text)] = None
    inputs: Annotated[list[SavedSlot], BeforeValidator(_list)] = Field(default_factory=list)
    outputs: Annotated[list[SavedSlot], BeforeValidator(_list)] = Field(default_factory=list)
    properties: Values = Field(default_factory=dict)
    widgets_values: Any = None


class SavedDefinitions(Saved):
    subgraphs: "Annotated[list[SavedGraph], BeforeValidator(_list)]" = Field(default_factory=list)


class SavedGraph(Saved):
    """A graph, or the definition of a subgraph."""

    id: NodeId = ""
    name: Annotated[str | None, BeforeValidator(_text)] = None
    nodes: Annotated[list[SavedNode], BeforeValidator(_list)] = Field(default_factory=list)
    links: Annotated[list[Annotated[SavedLink, BeforeValidator(_link)]], BeforeValidator(_list)] = Field(
        default_factory=list
    )
    inputs: Annotated[list[SavedSlot], BeforeValidator(_list)] = Field(default_factory=list)
    outputs: Annotated[list[SavedSlot], BeforeValidator(_list)] = Field(default_factory=list)
    definitions: SavedDefinitions | None = None
    extra: Values = Field(default_factory=dict)
    state: Values = Field(default_factory=dict)
    last_node_id: Any = 0


def read_saved(graph: Graph) -> tuple[SavedGraph, list[SavedGraph]]:
    """Return a saved graph, and the definitions of all its subgraphs, those inside others after them.

    Raises
    ------
    InvalidWorkflow
        If a part that a prompt needs is missing or has a wrong type.
    """
    try:
        root = SavedGraph.model_validate(graph)
    except ValidationError as error:
        raise InvalidWorkflow(f"The workflow is damaged: {_fault(error)}.") from error
    except RecursionError as error:
        raise InvalidWorkflow("The workflow is damaged: it is nested too deeply.") from error
    found: dict[str, SavedGraph] = {}
    waiting = list(reversed(root.definitions.subgraphs if root.definitions else []))
    while waiting:
        part = waiting.pop()
        found.setdefault(part.id, part)
        waiting += reversed(part.definitions.subgraphs if part.definitions else [])
    if len(found) > MAX_SUBGRAPHS:
        raise InvalidWorkflow(f"The workflow has more than {MAX_SUBGRAPHS} subgraphs.")
    return root, list(found.values())


def _fault(error: ValidationError) -> str:
    """Return the fault of the first part that cannot be read."""
    first = error.errors(include_url=False, include_input=False)[0]
    parts = [str(part) for part in first["loc"] if not str(part).startswith(("function-", "int", "str", "union"))]
    place, name = ".".join(parts)[:80], parts[-1] if parts else ""
    if first["type"] == "missing" and name in ("id", "type"):
        return f"a node has no id or no type ({place})"
    if "links" in parts:
        return f"{place} is no link"
    return f"{place}: {first['msg'][:120]}"
