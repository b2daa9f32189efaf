"""Pictures of LLaVA-OneVision: one picture in tiles that are scaled down if there are many, several pictures whole."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from tops_engine.families.parts.anyres import AnyResTiles
from tops_engine.families.parts.seen_area import padded_area
from tops_engine.media.layout import VisualLayout, grid_boxes


class OnevisionTiles(AnyResTiles):
    """AnyRes tiles whose tokens are scaled down if they are more than ``vision_aspect_ratio`` allows (anyres_max_9).

    If a prompt has several pictures, each is padded to a square and seen whole.
    """

    def counts(self, image_sizes: Sequence[Tensor]) -> list[int]:
        return super().counts(image_sizes) if len(image_sizes) == 1 else [1] * len(image_sizes)

    def num_tokens(self, width: int, height: int, alone: bool) -> int:
        return super().num_tokens(width, height, alone) if alone else self.side**2 + 1

    def layouts(self, images: Sequence[Image.Image], image_sizes: Sequence[Tensor]) -> list[VisualLayout]:
        if len(images) <= 1:
            return super().layouts(images, image_sizes)
        view, grid = torch.zeros(self.side**2 + 1, dtype=torch.int64), (self.side, self.side)
        return [
            VisualLayout(torch.cat([grid_boxes(*grid, padded_area(image.size)), torch.zeros(1, 4)]), view, (grid,))
            for image in images
        ]

    def order(self, num_tiles: int, image_size: Tensor) -> Tensor | None:
        return None if self._is_scaled(num_tiles, image_size) else super().order(num_tiles, image_size)

    def pack_by_model(self, values: Tensor, image_size: Tensor, newline: Tensor) -> Tensor:
        if not values.is_floating_point():
            return pack_numbers(values, lambda shares, newline: self.pack_by_model(shares, image_size, newline))
        return self._pack(values, image_size, newline, self.config.vision_aspect_ratio)

    def _pack(self, values: Tensor, image_size: Tensor, newline: Tensor, aspect_ratio: str) -> Tensor:
        packed, _ = self.model.pack_image_features(
            [values], image_size[None], newline, vision_aspect_ratio=aspect_ratio
        )
        return packed[0]

    def _is_scaled(self, num_tiles: int, image_size: Tensor) -> bool:
        """Return whether a picture of (height, width) makes more tokens than the model takes."""
        tiles, newline = torch.zeros(num_tiles, self.side**2, 1), torch.zeros(1)
        scaled, whole = (
            self._pack(tiles, image_size, newline, ratio)
            for ratio in (self.config.vision_aspect_ratio, f"anyres_max_{num_tiles}")
        )
        return len(scaled) < len(whole)


def as_one_conversation(images: Sequence[Image.Image]) -> Sequence[Any]:
    """Nest several pictures, so that transformers' processor takes them for those of one conversation."""
    return [images] if len(images) > 1 else images


def pack_numbers(values: Tensor, pack: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Return the number of the patches that each token shows most of, where tokens are scaled down: int64 [n, 1].

    Parameters
    ----------
    values : int64 [tiles, patches, 1].
    pack : brings values of patches, [tiles, patches, c], and of a newline, [c], into the order of the tokens: [n, c].

    Returns
    -------
    0 for newline tokens.
    """
    numbers, kind = torch.unique(values, return_inverse=True)
    shares = F.one_hot(kind[..., 0], len(numbers)).float()
    shares = pack(shares, shares.new_zeros(len(numbers)))
    return torch.where(shares.any(dim=1), numbers[shares.argmax(dim=1)], 0)[:, None]
