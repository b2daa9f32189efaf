"""Masks. MASK is float32 [B, H, W] in 0..1."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tops_workflow.core_nodes.images import MAX_RESOLUTION, save_pictures

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


class GrowMask:
    """Core id GrowMask."""

    CATEGORY = "mask"
    DESCRIPTION = "Grows masks by pixels, or shrinks them where expand is below 0."
    SEARCH_ALIASES = ["expand mask", "shrink mask"]
    RETURN_TYPES = ("MASK",)
    FUNCTION = "expand_mask"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        expand = {"default": 0, "min": -MAX_RESOLUTION, "max": MAX_RESOLUTION, "step": 1}
        corners = {"default": True, "advanced": True}
        return {
            "required": {"mask": ("MASK",), "expand": ("INT", expand), "tapered_corners": ("BOOLEAN", corners)},
        }

    def expand_mask(self, mask: Tensor, expand: int, tapered_corners: bool) -> tuple[Tensor]:
        sign = 1 if expand > 0 else -1
        grown = sign * mask.reshape(-1, *mask.shape[-2:])
        for _ in range(min(abs(expand), max(grown.shape[-2:]))):
            grown = _dilated(grown, tapered_corners)
        return (sign * grown,)


def _dilated(mask: Tensor, tapered_corners: bool) -> Tensor:
    """Return the largest of each pixel and its 4 or 8 neighbours; [B, H, W]."""
    if not tapered_corners:
        return F.max_pool2d(mask, 3, 1, 1)
    return torch.maximum(F.max_pool2d(mask, (3, 1), 1, (1, 0)), F.max_pool2d(mask, (1, 3), 1, (0, 1)))
