"""The ComfyUI nodes of TOPS Engine.

Every class in a module of this folder that has a ``NODE_ID`` is a node, so that a new file adds its nodes. Ids, input
names, their order and the order of outputs are public, because saved workflows hold them: append, never rename, remove
or reorder. ``definitions.json`` records what was shipped, and a test compares.
"""

import importlib
import pkgutil
from typing import Any

#: What a node class needs beside its ``NODE_ID``.
REQUIRED = ("TITLE", "DESCRIPTION", "CATEGORY", "RETURN_TYPES", "FUNCTION", "INPUT_TYPES", "__doc__")


def _find_nodes() -> dict[str, Any]:
    """Return the node classes of this folder by id, in the order of their ids.

    Raises
    ------
    TypeError
        If a class lacks something that a node needs, or two have the same id.
    """
    found: dict[str, Any] = {}
    for info in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{info.name}")
        for node in vars(module).values():
            if not isinstance(node, type) or node.__module__ != module.__name__ or "NODE_ID" not in vars(node):
                continue
            node_id, title = vars(node)["NODE_ID"], f"The node {node.__name__} in {info.name}.py"
            missing = [name for name in REQUIRED if getattr(node, name, None) in (None, "")]
            if missing:
                raise TypeError(f"{title} has no {' and no '.join(missing)}.")
            if node_id in found:
                raise TypeError(f"{title} has the id {node_id!r}, and so has {found[node_id].__name__}; rename it.")
            found[node_id] = node
    return dict(sorted(found.items()))


NODE_CLASS_MAPPINGS: dict[str, Any] = _find_nodes()
NODE_DISPLAY_NAME_MAPPINGS: dict[str, str] = {node_id: node.TITLE for node_id, node in NODE_CLASS_MAPPINGS.items()}
