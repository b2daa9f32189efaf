"""Putting pictures and masks on others."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tops_workflow.core_nodes.images import MAX_RESOLUTION, scale, with_channels


class ImageCompositeMasked:
    """Core id ImageCompositeMasked."""

    CATEGORY = "image"
    DESCRIPTION = "Puts pictures on others at a place, where the mask is 1."
    SEARCH_ALIASES = ["overlay", "paste image", "composite"]
    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "execute"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        place = {"default": 0, "min": 0, "max": MAX_RESOLUTION, "step": 1}
        return {
            "required": {
                "destination": ("IMAGE",),
                "source": ("IMAGE",),
                "x": ("INT", place),
                "y": ("INT", place),
                "resize_source": ("BOOLEAN", {"default": False}),
            },
            "optional": {"mask": ("MASK",)},
        }

    def execute(
        self, destination: Tensor, source: Tensor, x: int, y: int, resize_source: bool, mask: Tensor | None = None
    ) -> tuple[Tensor]:
        channels = max(destination.shape[3], source.shape[3])
        below, above = with_channels(destination, channels).clone(), with_channels(source, channels)
        if resize_source:
            above = scale(above, below.shape[2], below.shape[1], "bilinear")
        share = torch.ones(above.shape[:3]) if mask is None else mask.reshape(-1, *mask.shape[-2:])
        share = scale(share[..., None], above.shape[2], above.shape[1], "bilinear")
        above, share = _repeated(above, len(below)), _repeated(share, len(below))
        height, width = max(0, below.shape[1] - y), max(0, below.shape[2] - x)
        above, share = above[:, :height, :width], share[:, :height, :width]
        region = below[:, y : y + above.shape[1], x : x + above.shape[2]]
        region.copy_(share * above + (1 - share) * region)
        return (below,)


def _repeated(batch: Tensor, length: int) -> Tensor:
    """Return a batch of this length: cut, or repeated from its first."""
    return batch[torch.arange(length) % len(batch)]


class MaskComposite:
    """Core id MaskComposite."""

    CATEGORY = "mask"
    DESCRIPTION = "Combines a mask with another at a place."
    SEARCH_ALIASES = ["combine masks"]
    RETURN_TYPES = ("MASK",)
    FUNCTION = "combine"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        place = {"default": 0, "min": 0, "max": MAX_RESOLUTION, "step": 1}
        return {
            "required": {
                "destination": ("MASK",),
                "source": ("MASK",),
                "x": ("INT", place),
                "y": ("INT", place),
                "operation": (list(OPERATIONS), {}),
            }
        }

    def combine(self, destination: Tensor, source: Tensor, x: int, y: int, operation: str) -> tuple[Tensor]:
        result = destination.reshape(-1, *destination.shape[-2:]).clone()
        above = _repeated(source.reshape(-1, *source.shape[-2:]), len(result))
        above = above[:, : max(0, result.shape[1] - y), : max(0, result.shape[2] - x)]
        region = result[:, y : y + above.shape[1], x : x + above.shape[2]]
        region.copy_(OPERATIONS[operation](region, above).clamp(0, 1))
        return (result,)


def _is_set(mask: Tensor) -> Tensor:
    return mask.round().bool()


OPERATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "multiply": torch.mul,
    "add": torch.add,
    "subtract": torch.sub,
    "and": lambda one, other: (_is_set(one) & _is_set(other)).float(),
    "or": lambda one, other: (_is_set(one) | _is_set(other)).float(),
    "xor": lambda one, other: (_is_set(one) ^ _is_set(other)).float(),
}
