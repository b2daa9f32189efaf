"""The nodes as classes of ComfyUI's V3 interface (``comfy_api.latest``), made from the classes in this folder.

A V3 class adds nothing to the definition: inputs, outputs, titles and search words are those of the node's own class.
"""

import asyncio
import threading
from collections.abc import Callable
from dataclasses import fields
from typing import Any

from tops_workflow.growing import is_group

from .comfyui_host import given_up
from .servers import ServedModel

#: A member of ``Schema`` that ComfyUI 0.3.64 lacks: versions before it load V3 nodes incompletely.
NEEDED = "search_aliases"


def has_v3() -> bool:
    """Return whether the running ComfyUI loads V3 nodes completely."""
    try:
        from comfy_api.latest import io
    except ImportError:
        return False
    return NEEDED in {field.name for field in fields(io.Schema)}


def extension(nodes: dict[str, Any]) -> Any:
    """Return the ``ComfyExtension`` of node classes by id."""
    from comfy_api.latest import ComfyExtension

    class TopsExtension(ComfyExtension):
        async def get_node_list(self) -> list[Any]:
            return [v3_node(node) for node in nodes.values()]

    return TopsExtension()


def v3_node(node: Any) -> Any:
    """Return the V3 class of a node class."""
    from comfy_api.latest import io

    class Node(io.ComfyNode):
        @classmethod
        def define_schema(cls) -> Any:
            return _schema(node)

        @classmethod
        async def execute(cls, **inputs: Any) -> Any:
            run = getattr(node(), node.FUNCTION)
            # Questions to servers run side by side. A model on this machine stays in ComfyUI's own thread, which is
            # the only one that may move weights.
            returned = await _in_a_thread(run, inputs) if _asks_a_server(inputs) else run(**inputs)
            if isinstance(returned, dict):
                return io.NodeOutput(*returned["result"], ui=returned["ui"])
            return io.NodeOutput(*returned)

    # The functions themselves, because ComfyUI reads the names of their parameters.
    for name, method in (("validate_inputs", "VALIDATE_INPUTS"), ("fingerprint_inputs", "IS_CHANGED")):
        if hasattr(node, method):
            setattr(Node, name, classmethod(getattr(node, method).__func__))
    Node.__name__ = Node.__qualname__ = node.__name__
    Node.__doc__ = node.__doc__
    return Node


def _schema(node: Any) -> Any:
    from comfy_api.latest import io

    inputs = node.INPUT_TYPES()
    is_list = getattr(node, "OUTPUT_IS_LIST", [False] * len(node.RETURN_TYPES))
    outputs = zip(node.RETURN_TYPES, node.RETURN_NAMES, node.OUTPUT_TOOLTIPS, is_list, strict=True)
    return io.Schema(
        node_id=node.NODE_ID,
        display_name=node.TITLE,
        category=node.CATEGORY,
        description=node.DESCRIPTION,
        search_aliases=list(getattr(node, "SEARCH_ALIASES", [])),
        inputs=[
            _input(name, *spec, optional=group == "optional")
            for group in ("required", "optional")
            for name, spec in inputs.get(group, {}).items()
        ],
        outputs=[
            io.Custom(kind).Output(name, display_name=name, tooltip=tooltip, is_output_list=several)
            for kind, name, tooltip, several in outputs
        ],
        is_input_list=getattr(node, "INPUT_IS_LIST", False),
        is_output_node=getattr(node, "OUTPUT_NODE", False),
        is_deprecated=getattr(node, "DEPRECATED", False),
        is_experimental=getattr(node, "EXPERIMENTAL", False),
    )


def _input(name: str, kind: Any, options: dict[str, Any], *, optional: bool) -> Any:
    from comfy_api.latest import io

    given = {"optional": optional, "tooltip": options.get("tooltip")}
    rest = {key: value for key, value in options.items() if key not in ("tooltip", "default", "multiline")}
    if is_group((kind, options)):
        template = options["template"]
        ((first, spec),) = template["input"]["required"].items()
        every = io.Autogrow.TemplateNames(_input(first, *spec, optional=False), template["names"], template["min"])
        return io.Autogrow.Input(name, every, **given)
    if isinstance(kind, list):
        return io.Combo.Input(name, options=kind, default=options.get("default"), extra_dict=rest, **given)
    widgets = {"INT": io.Int, "FLOAT": io.Float, "STRING": io.String, "BOOLEAN": io.Boolean}
    if kind not in widgets:
        return io.Custom(kind).Input(name, extra_dict=rest, **given)
    if kind == "STRING":
        given["multiline"] = options.get("multiline", False)
    return widgets[kind].Input(name, default=options.get("default"), extra_dict=rest, **given)


async def _in_a_thread(run: Callable[..., Any], inputs: dict[str, Any]) -> Any:
    """Run a node in a thread; if ComfyUI gives up the prompt meanwhile, the node stops at its next token."""
    gave_up = threading.Event()
    token = given_up.set(gave_up)
    try:
        return await asyncio.to_thread(run, **inputs)
    except asyncio.CancelledError:
        gave_up.set()
        raise
    finally:
        given_up.reset(token)


def _asks_a_server(inputs: dict[str, Any]) -> bool:
    model = inputs.get("model")
    return isinstance(model[0] if isinstance(model, list) and model else model, ServedModel)
