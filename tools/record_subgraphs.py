"""Write ``subgraphs``, the blueprints that ComfyUI offers beside the nodes: python -m tools.record_subgraphs"""

import json
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tops_workflow.formats import Graph, Prompt
from tops_workflow.layout import prompt_to_graph

FOLDER = Path(__file__).parents[1] / "subgraphs"

#: Nodes at the edge of a subgraph, as the frontend numbers them.
INPUT, OUTPUT = -10, -20

#: Pixels between the edge of a subgraph and the nodes inside.
EDGE = 160


@dataclass(frozen=True)
class Blueprint:
    """A subgraph.

    Attributes
    ----------
    name, description : as the user sees them.
    prompt : the nodes inside. What is not given has its default.
    inputs : what comes in: the name, and the node and the input inside.
    outputs : what goes out: the name, and the node and the number of the output inside.
    widgets : the node and the widget inside that the subgraph shows, in their order.
    """

    name: str
    description: str
    prompt: Prompt
    inputs: dict[str, tuple[str, str]]
    outputs: dict[str, tuple[str, int]]
    widgets: list[tuple[str, str]]


MODEL = {"1": {"class_type": "TOPSLoadModel", "inputs": {}}, "2": {"class_type": "TOPSPruning", "inputs": {}}}
LINKS: dict[str, Any] = {"model": ["1", 0], "pruning": ["2", 0]}

BLUEPRINTS = [
    Blueprint(
        "TOPS Ask with token map",
        "Asks a vision-language model about a picture and shows which parts of it the model kept.",
        MODEL
        | {
            "3": {"class_type": "TOPSAsk", "inputs": LINKS},
            "4": {"class_type": "TOPSTokenMap", "inputs": {"stats": ["3", 3]}},
        },
        {"image": ("3", "image")},
        {"answer": ("3", 0), "token_map": ("4", 0), "mask": ("4", 1), "stats_text": ("3", 4)},
        [("3", "prompt"), ("3", "preset"), ("1", "model"), ("1", "hub_id"), ("2", "keep"), ("4", "style")],
    ),
    Blueprint(
        "TOPS Caption a folder",
        "Captions the pictures of a folder for training, with .txt files beside them if wanted.",
        MODEL | {"3": {"class_type": "TOPSCaptionBatch", "inputs": LINKS | {"folder": "tops_training"}}},
        {},
        {"captions": ("3", 0), "names": ("3", 1), "report": ("3", 3), "preview": ("3", 5)},
        [
            *(("3", widget) for widget in ("folder", "style", "trigger", "write_txt", "existing_txt", "dry_run")),
            ("1", "model"),
            ("1", "hub_id"),
            ("2", "keep"),
        ],
    ),
    Blueprint(
        "TOPS Extract JSON",
        "Reads data from a picture as JSON that satisfies a schema.",
        MODEL | {"3": {"class_type": "TOPSStructured", "inputs": LINKS}},
        {"image": ("3", "image")},
        {"json": ("3", 0), "fields": ("3", 1), "token_map": ("3", 2)},
        [("3", "prompt"), ("3", "json_schema"), ("3", "fields"), ("1", "model"), ("1", "hub_id"), ("2", "keep")],
    ),
]


def graph_of(blueprint: Blueprint, definitions: dict[str, Any]) -> Graph:
    """Return the blueprint as the frontend saves one: a graph of one node, and the subgraph that it stands for."""
    inside = prompt_to_graph(blueprint.prompt, definitions)
    subgraph = _subgraph(blueprint, inside, definitions)
    shown = {name for _, name in blueprint.widgets}
    inputs = [
        {"name": port["name"], "label": port["label"], "type": port["type"], "link": None}
        | ({"widget": {"name": port["name"]}} if port["name"] in shown else {})
        for port in subgraph["inputs"]
    ]
    outputs = [
        {"name": port["name"], "label": port["label"], "type": port["type"], "links": []}
        for port in subgraph["outputs"]
    ]
    node = {
        "id": 1,
        "type": subgraph["id"],
        "title": blueprint.name,
        "pos": [0, 0],
        "size": [400, _height(blueprint, definitions)],
        "flags": {},
        "order": 0,
        "mode": 0,
        "inputs": inputs,
        "outputs": outputs,
        "properties": {"cnr_id": "tops-engine"},
        "widgets_values": [],
    }
    counts = {"revision": 0, "last_node_id": 1, "last_link_id": 0}
    return counts | {"nodes": [node], "links": [], "version": 0.4, "definitions": {"subgraphs": [subgraph]}}


def _height(blueprint: Blueprint, definitions: dict[str, Any]) -> int:
    """Return pixels that hold the outputs and the widgets of a blueprint, with room for texts of several lines."""
    shown = [(definitions[blueprint.prompt[node]["class_type"]], widget) for node, widget in blueprint.widgets]
    texts = [_spec(definition, widget)[-1].get("multiline") for definition, widget in shown]
    return 40 + 20 * len(blueprint.outputs) + 32 * len(texts) + 100 * sum(map(bool, texts))


def _spec(definition: dict[str, Any], widget: str) -> Any:
    """Return the type of a widget, and its options."""
    return next(group[widget] for group in definition["input"].values() if widget in group)


def _subgraph(blueprint: Blueprint, inside: Graph, definitions: dict[str, Any]) -> dict[str, Any]:
    nodes = {str(node["id"]): node for node in inside["nodes"]}
    right = max(node["pos"][0] + node["size"][0] for node in nodes.values())
    identity = uuid.uuid5(uuid.NAMESPACE_URL, f"tops-engine/subgraphs/{blueprint.name}")
    edge = _Edge(nodes, inside["links"], identity)
    for name, (target, socket) in blueprint.inputs.items():
        edge.enter(name, target, socket)
    for target, widget in blueprint.widgets:
        edge.add_widget(target, widget, definitions[nodes[target]["type"]])
        edge.enter(widget, target, widget)
    for name, (source, slot) in blueprint.outputs.items():
        edge.leave(name, source, slot, right + EDGE)
    return {
        "id": str(identity),
        "version": 1,
        "state": {"lastGroupId": 0, "lastNodeId": len(nodes), "lastLinkId": len(edge.links), "lastRerouteId": 0},
        "revision": 0,
        "config": {},
        "name": blueprint.name,
        "category": "TOPS",
        "description": blueprint.description,
        "inputNode": {"id": INPUT, "bounding": [-EDGE - 100, 80, 120, 40 + 20 * len(edge.inputs)]},
        "outputNode": {"id": OUTPUT, "bounding": [right + EDGE, 80, 120, 40 + 20 * len(edge.outputs)]},
        "inputs": edge.inputs,
        "outputs": edge.outputs,
        "widgets": [],
        "nodes": list(nodes.values()),
        "groups": [],
        "links": edge.links,
        "extra": {},
    }


class _Edge:
    """What goes into a subgraph and out of it, and all links inside."""

    def __init__(self, nodes: dict[str, dict[str, Any]], links: list[list[Any]], identity: uuid.UUID) -> None:
        names = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
        self.links = [dict(zip(names, link, strict=True)) for link in links]
        self.inputs: list[dict[str, Any]] = []
        self.outputs: list[dict[str, Any]] = []
        self._nodes, self._identity = nodes, identity

    def add_widget(self, node: str, widget: str, definition: dict[str, Any]) -> None:
        """Give a node the socket of one of its widgets."""
        kind = _spec(definition, widget)[0]
        shown = {"name": widget, "type": "COMBO" if isinstance(kind, list) else kind, "widget": {"name": widget}}
        self._nodes[node]["inputs"].append(shown | {"link": None})

    def enter(self, name: str, target: str, socket: str) -> None:
        """Lead an input of the subgraph to a socket of a node."""
        sockets = self._nodes[target]["inputs"]
        slot = [entry["name"] for entry in sockets].index(socket)
        link = {"origin_id": INPUT, "origin_slot": len(self.inputs), "target_id": int(target), "target_slot": slot}
        self.inputs.append(self._port("input", name, link | {"type": sockets[slot]["type"]}, -EDGE))
        sockets[slot]["link"] = len(self.links)

    def leave(self, name: str, source: str, slot: int, x: int) -> None:
        """Lead an output of a node out of the subgraph."""
        output = self._nodes[source]["outputs"][slot]
        link = {"origin_id": int(source), "origin_slot": slot, "target_id": OUTPUT, "target_slot": len(self.outputs)}
        self.outputs.append(self._port("output", name, link | {"type": output["type"]}, x))
        output["links"] = [*(output["links"] or []), len(self.links)]

    def _port(self, side: str, name: str, link: dict[str, Any], x: int) -> dict[str, Any]:
        number = len(self.links) + 1
        self.links.append({"id": number, **link})
        y = 100 + 20 * (link["origin_slot"] if side == "input" else link["target_slot"])
        shown = {
            "name": name,
            "label": name.replace("_", " "),
            "type": link["type"],
            "linkIds": [number],
            "pos": [x, y],
        }
        return {"id": str(uuid.uuid5(self._identity, f"{side}/{name}")), **shown}


def record(definitions: dict[str, Any]) -> None:
    """Write all blueprints for the definitions of all nodes."""
    FOLDER.mkdir(exist_ok=True)
    for blueprint in BLUEPRINTS:
        text = json.dumps(graph_of(blueprint, definitions), indent=1, ensure_ascii=False)
        (FOLDER / f"{blueprint.name}.json").write_text(f"{text}\n", encoding="utf-8")


if __name__ == "__main__":
    from tools.record_nodes import all_definitions

    record(all_definitions())
