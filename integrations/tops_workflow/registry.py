"""The nodes that run without ComfyUI: the basic core nodes and our own."""

from dataclasses import dataclass
from functools import cache
from typing import Any

from tops_workflow.core_nodes import CORE_NODES, CORE_TITLES
from tops_workflow.definitions import Definition, node_definition
from tops_workflow.pack import load_pack

PACK_MODULE = "custom_nodes.tops-engine"


@dataclass(frozen=True)
class NodeSet:
    """Node classes by ``class_type``, with the display name of each and the module that its definition states."""

    classes: dict[str, Any]
    titles: dict[str, str]
    modules: dict[str, str]

    def definition(self, node_id: str) -> Definition:
        """Return the definition as in ``/object_info``; lists of files and models are read again."""
        return node_definition(node_id, self.classes[node_id], self.titles[node_id], self.modules[node_id])

    def definitions(self) -> dict[str, Definition]:
        return {node_id: self.definition(node_id) for node_id in self.classes}


@cache
def all_nodes() -> NodeSet:
    """Return every node that runs without ComfyUI. The first call imports the engine."""
    pack = load_pack()
    ours: dict[str, Any] = pack.NODE_CLASS_MAPPINGS
    modules = dict.fromkeys(CORE_NODES, "nodes") | dict.fromkeys(ours, PACK_MODULE)
    return NodeSet(CORE_NODES | ours, CORE_TITLES | pack.NODE_DISPLAY_NAME_MAPPINGS, modules)
