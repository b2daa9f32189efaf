"""TOPS Unload."""

from typing import Any

from .models import NodeModel, living_handles
from .sockets import MODEL, expect_model


class AnyType(str):
    """Equal to every type: a socket that everything may be connected to, on cores that compare by equality."""

    def __eq__(self, other: object) -> bool:
        return True

    def __ne__(self, other: object) -> bool:
        return False

    __hash__ = str.__hash__


ANY = AnyType("*")


class Unload:
    """Free the memory of models."""

    NODE_ID = "TOPSUnload"
    TITLE = "TOPS Unload (free VRAM)"
    CATEGORY = "TOPS"
    DESCRIPTION = "Frees a model's memory, device and main memory alike; the next question loads it again."
    SEARCH_ALIASES = ["free memory", "vram", "offload", "purge"]
    RETURN_TYPES = (ANY,)
    RETURN_NAMES = ("passed_on",)
    OUTPUT_TOOLTIPS = ("What came in, so that the next step waits until the memory is free.",)
    FUNCTION = "unload"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {"after": (ANY, {"tooltip": "Any output, such as an answer: the model is freed after it."})},
            "optional": {"model": (MODEL, {"tooltip": "The model to free; nothing connected frees all TOPS models."})},
        }

    @classmethod
    def IS_CHANGED(cls, **_: Any) -> float:
        return float("nan")  # memory may have been taken again since

    def unload(self, after: Any, model: NodeModel | None = None) -> dict[str, Any]:
        handles = living_handles() if model is None else [expect_model(model)]
        freed = [name for handle in handles for name in handle.free()]
        return {"ui": {"text": [f"freed: {', '.join(freed) or 'nothing'}"]}, "result": (after,)}
