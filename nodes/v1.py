"""The nodes as ComfyUI loads them where its V3 interface is incomplete, which knows no groups of inputs that grow."""

from typing import Any

from tops_workflow.growing import grouped, is_group, single_inputs

#: Inputs of a group that such a node has.
MOST_INPUTS = 6


def v1_nodes(nodes: dict[str, Any]) -> dict[str, Any]:
    """Return node classes by id; a class with groups is replaced by one that has each of their inputs."""
    return {node_id: _without_groups(node) if _has_groups(node) else node for node_id, node in nodes.items()}


def _has_groups(node: Any) -> bool:
    return any(is_group(spec) for specs in node.INPUT_TYPES().values() for spec in specs.values())


def _without_groups(node: Any) -> Any:
    def input_types(cls: Any) -> dict[str, Any]:
        return {section: single_inputs(specs, MOST_INPUTS) for section, specs in node.INPUT_TYPES().items()}

    def run(self: Any, **inputs: Any) -> Any:
        return getattr(self, node.FUNCTION)(**grouped(inputs))

    members = {"__doc__": node.__doc__, "INPUT_TYPES": classmethod(input_types), "FUNCTION": "run", "run": run}
    return type(node.__name__, (node,), members)
