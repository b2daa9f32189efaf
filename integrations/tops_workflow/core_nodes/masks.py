"""Masks. MASK is float32 [B, H, W] in 0..1."""

from typing import Any

from torch import Tensor

from tops_workflow.core_nodes.images import save_pictures

COLOURS = ["red", "green", "blue", "alpha"]


def as_image(mask: Tensor) -> Tensor:
    """Convert a mask [B, H, W] or [H, W] to a grey picture [B, H, W, 3]."""
    return mask.reshape(-1, mask.shape[-2], mask.shape[-1], 1).expand(-1, -1, -1, 3)


class MaskToImage:
    """Core id MaskToImage."""

    CATEGORY = "mask"
    DESCRIPTION = "Makes a grey picture of a mask."
    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "mask_to_image"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"mask": ("MASK",)}}

    def mask_to_image(self, mask: Tensor) -> tuple[Tensor]:
        return (as_image(mask),)


class ImageToMask:
    """Core id ImageToMask."""

    CATEGORY = "mask"
    DESCRIPTION = "Takes one channel of pictures as a mask."
    RETURN_TYPES = ("MASK",)
    FUNCTION = "image_to_mask"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"image": ("IMAGE",), "channel": (COLOURS, {})}}

    def image_to_mask(self, image: Tensor, channel: str) -> tuple[Tensor]:
        return (image[..., COLOURS.index(channel)],)


class InvertMask:
    """Core id InvertMask."""

    CATEGORY = "mask"
    DESCRIPTION = "Swaps what is masked and what is not."
    RETURN_TYPES = ("MASK",)
    FUNCTION = "invert"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"mask": ("MASK",)}}

    def invert(self, mask: Tensor) -> tuple[Tensor]:
        return (1.0 - mask,)


class MaskPreview:
    """Core id MaskPreview."""

    CATEGORY = "mask"
    DESCRIPTION = "Shows masks."
    RETURN_TYPES = ()
    FUNCTION = "execute"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {"mask": ("MASK",)},
            "hidden": {"prompt": "PROMPT", "extra_pnginfo": "EXTRA_PNGINFO"},
        }

    def execute(
        self, mask: Tensor, prompt: dict[str, Any] | None = None, extra_pnginfo: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        return {"ui": {"images": save_pictures(as_image(mask), "temp", "mask", prompt, extra_pnginfo)}}
