"""The definition of a node class as in ComfyUI's ``/object_info``, from the members of the class."""

from typing import Any

Definition = dict[str, Any]


def node_definition(node_id: str, node: Any, title: str, module: str) -> Definition:
    """Return the definition of a V1 node class, ready for JSON.

    Parameters
    ----------
    module : ``nodes`` for core nodes, ``custom_nodes.<folder>`` for others; the frontend splits it at dots.
    """
    inputs = {kind: {name: list(spec) for name, spec in some.items()} for kind, some in node.INPUT_TYPES().items()}
    essential = {"essentials_category": node.ESSENTIALS_CATEGORY} if hasattr(node, "ESSENTIALS_CATEGORY") else {}
    outputs = [str(kind) if isinstance(kind, str) else kind for kind in node.RETURN_TYPES]
    return {
        "input": inputs,
        "input_order": {kind: list(some) for kind, some in inputs.items()},
        "is_input_list": getattr(node, "INPUT_IS_LIST", False),
        "output": outputs,
        "output_is_list": list(getattr(node, "OUTPUT_IS_LIST", [False] * len(outputs))),
        "output_name": list(getattr(node, "RETURN_NAMES", outputs)),
        "output_tooltips": list(getattr(node, "OUTPUT_TOOLTIPS", [])),
        "name": node_id,
        "display_name": title,
        "description": getattr(node, "DESCRIPTION", ""),
        "python_module": module,
        "category": node.CATEGORY,
        "output_node": getattr(node, "OUTPUT_NODE", False),
        "has_intermediate_output": getattr(node, "HAS_INTERMEDIATE_OUTPUT", False),
        "deprecated": getattr(node, "DEPRECATED", False),
        "experimental": getattr(node, "EXPERIMENTAL", False),
        "search_aliases": list(getattr(node, "SEARCH_ALIASES", [])),
        **essential,
    }
