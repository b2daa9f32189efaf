"""Node classes with inputs of every kind, as ``/object_info`` gives them."""

from typing import Any

Saved = dict[str, Any]


def _definition(name: str, required: Saved, optional: Saved, *outputs: str, is_output: bool = False) -> Saved:
    return {
        "input": {"required": required, "optional": optional},
        "input_order": {"required": list(required), "optional": list(optional)},
        "is_input_list": False,
        "output": list(outputs),
        "output_is_list": [False for _ in outputs],
        "output_name": list(outputs),
        "output_tooltips": [],
        "name": name,
        "display_name": f"The {name}",
        "description": "",
        "python_module": "custom_nodes.random_graphs",
        "category": "random",
        "output_node": is_output,
    }


_INT, _FLOAT, _TEXT = ["INT", {"default": 3}], ["FLOAT", {"default": 0.5, "step": 0.01}], ["STRING", {"default": "new"}]
_SMALL = {"required": {"width": _INT, "height": ["INT", {"default": 7}]}}
_BIG = {"required": {"scale": _FLOAT, "kind": [["x", "y"], {}]}, "optional": {"image": ["IMAGE", {}]}}
_MODES = [{"key": "small", "inputs": _SMALL}, {"key": "big", "inputs": _BIG}, {"key": "none", "inputs": {}}]
_FORCED = ["INT", {"default": 0, "forceInput": True}]
_GROW = {"input": {"required": {"image": ["IMAGE", {}]}}, "prefix": "image", "min": 2, "max": 6}

DEFINITIONS: dict[str, Saved] = {
    one["name"]: one
    for one in (
        _definition("RandomNumber", {"value": _INT, "seed": ["INT", {"max": 2**64 - 1}]}, {}, "INT", "FLOAT"),
        _definition(
            "RandomText",
            {"text": ["STRING", {"multiline": True, "dynamicPrompts": True}]},
            {"style": [["plain", "bold"], {}]},
            "STRING",
        ),
        _definition(
            "RandomImage",
            {"image": [["a.png", "b.png"], {"image_upload": True}]},
            {"channel": [["red", "alpha"], {"default": "alpha", "control_after_generate": True}]},
            "IMAGE",
            "MASK",
        ),
        _definition(
            "RandomAsk",
            {"image": ["IMAGE", {}], "prompt": ["STRING", {"multiline": True}]},
            {"mask": ["MASK", {}], "count": _INT, "noise_seed": ["INT", {}], "keep": _FLOAT, "flag": ["BOOLEAN", {}]},
            "STRING",
            "IMAGE",
        ),
        _definition("RandomAdd", {"a": _INT, "b": _FORCED}, {"c": _INT}, "INT"),
        _definition("RandomAny", {"value": ["*", {}], "note": _TEXT}, {}, "*"),
        _definition("RandomUnion", {"input": ["IMAGE,MASK", {}]}, {"amount": _FLOAT}, "IMAGE"),
        _definition(
            "RandomMode", {"mode": ["COMFY_DYNAMICCOMBO_V3", {"options": _MODES}], "after": _TEXT}, {}, "IMAGE"
        ),
        _definition("RandomGrow", {"images": ["COMFY_AUTOGROW_V3", {"template": _GROW}], "fps": _FLOAT}, {}, "IMAGE"),
        _definition(
            "RandomLook",
            {
                "color": ["COLOR", {"default": "#ffffff"}],
                "box": ["BOUNDING_BOX", {"default": {"x": 1, "y": 2, "width": 3, "height": 4}}],
                "colors": ["COLORS", {"default": ["#000000"]}],
                "compare": ["IMAGECOMPARE", {}],
                "last": _TEXT,
            },
            {},
            "STRING",
        ),
        _definition("RandomShow", {"value": ["*", {}]}, {"image": ["IMAGE", {}]}, is_output=True),
    )
}
