"""ComfyUI's own templates, and definitions of their nodes made from what they were saved with.

The package ``comfyui-workflow-templates-json`` (MIT) has several hundred graphs that people saved with many versions of
the frontend. It says nothing of the node classes; a saved node lists its inputs and outputs, which is enough.
"""

import json
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

Saved = dict[str, Any]

#: Classes whose values the frontend computes in JavaScript of its own, such as what a 3D view shows.
COMPUTED = ("3D", "GLB", "Gaussian", "PointCloud", "CustomCombo", "Webcam", "RecordAudio", "Painter", "Composit")
WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", "COMFY_DYNAMICCOMBO_V3")


def templates_folder() -> Path | None:
    """Return where the templates are installed, if they are."""
    found = find_spec("comfyui_workflow_templates_json")
    return None if found is None or found.origin is None else Path(found.origin).parent / "templates"


def read_templates(folder: Path, count: int) -> dict[str, Saved]:
    """Return templates by name, spread evenly over all that have no computed values."""
    graphs = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))}
    fit = {name: graph for name, graph in graphs.items() if isinstance(graph, dict) and _fits(graph)}
    step = max(1, len(fit) // count)
    return dict(list(fit.items())[::step][:count])


def definitions_of(graphs: dict[str, Saved]) -> dict[str, Saved]:
    """Return a definition for each node class: that of the node with the most inputs."""
    nodes: dict[str, Saved] = {}
    for graph in graphs.values():
        for node in _nodes(graph):
            known = nodes.get(node["type"])
            if known is None or len(node.get("inputs") or []) > len(known.get("inputs") or []):
                nodes[node["type"]] = node
    return {kind: _definition(kind, node) for kind, node in nodes.items()}


def _fits(graph: Saved) -> bool:
    kinds = {node["type"] for node in _nodes(graph)}
    return "nodes" in graph and not any(word in kind for kind in kinds for word in COMPUTED)


def _nodes(graph: Saved) -> Iterator[Saved]:
    parts = (graph.get("definitions") or {}).get("subgraphs") or []
    own = {part["id"] for part in parts} | {"Note", "MarkdownNote", "Reroute", "PrimitiveNode"}
    for part in (graph, *parts):
        for node in part.get("nodes") or []:
            if node["type"] not in own:
                yield node


def _definition(kind: str, node: Saved) -> Saved:
    required: Saved = {}
    for slot in node.get("inputs") or []:
        type_ = slot["type"] if isinstance(slot["type"], str) else "*"
        if "widget" not in slot:
            required[slot["name"]] = [type_, {"forceInput": True} if type_ in WIDGETS else {}]
        elif type_ in WIDGETS:
            is_choice = type_ in ("COMBO", "COMFY_DYNAMICCOMBO_V3")
            required[slot["name"]] = ["COMBO", {"options": ["one", "two"]}] if is_choice else [type_, {}]
    outputs = [slot["type"] if isinstance(slot["type"], str) else "*" for slot in node.get("outputs") or []]
    return {
        "input": {"required": required},
        "input_order": {"required": list(required)},
        "is_input_list": False,
        "output": outputs,
        "output_is_list": [False for _ in outputs],
        "output_name": outputs,
        "output_tooltips": [],
        "name": kind,
        "display_name": kind,
        "description": "",
        "python_module": "custom_nodes.templates",
        "category": "templates",
        "output_node": False,
    }
