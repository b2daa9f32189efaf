"""What InternVL and Idefics3 share: a picture stretched over a grid of tiles, and blocks of patches made one token."""

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from tops_engine.device.transfer import to_device
from tops_engine.families.parts.vision_signals import Call
from tops_engine.families.prompt import Prompt
from tops_engine.families.tower import PlainTower
from tops_engine.flops import VisionShape, patches_per_side
from tops_engine.media.layout import VisualLayout, grid_boxes


class Tiled(PlainTower, register=False):
    """Tiles come in raster order, each with its own grid of tokens; the whole picture, as small as a tile, comes last.

    A picture that fits one tile is the whole picture alone.
    """

    def __init__(self, model: Any, processor: Any) -> None:
        super().__init__(model, processor)
        vision = model.config.vision_config
        width = vision.hidden_size * self.block**2
        self.vision_shape = VisionShape.from_config(
            vision, self.has_cls, self.side**2, (width, *self.projector_outputs)
        )

    @property
    @abstractmethod
    def block(self) -> int:
        """How many patches wide and high a token is (pixel shuffle)."""

    @property
    @abstractmethod
    def projector_outputs(self) -> tuple[int, ...]:
        """Output widths of the projector's linear layers."""

    @abstractmethod
    def tile_grid(self, image: Image.Image) -> tuple[int, int]:
        """Rows and columns of tiles that the processor cuts a picture into; (0, 0) where it does not."""

    @abstractmethod
    def tile_features(self, pixel_values: Tensor) -> Tensor:
        """Vision tower and projector: [tiles, 3, height, width] -> [tiles, tokens, d]."""

    @property
    def side(self) -> int:
        """Tokens along a side of a tile."""
        return patches_per_side(self.model.config.vision_config) // self.block

    def layouts(self, images: Sequence[Image.Image], pixels: dict[str, Tensor]) -> list[VisualLayout]:
        return [tiled_layout(*self.tile_grid(image), self.side) for image in images]

    def project(self, prompts: Sequence[Prompt]) -> list[Tensor]:
        pixel_values = torch.cat([self.tiles(prompt) for prompt in prompts if prompt.spans])
        features = self.tile_features(to_device(pixel_values, self.decoder.device, self.decoder.dtype))
        return self.arrange(features, prompts)

    def tiles(self, prompt: Prompt) -> Tensor:
        """The pictures the vision tower sees for a prompt that has some: [tiles, 3, height, width]."""
        return prompt.pixels["pixel_values"]

    def arrange(self, values: Tensor, prompts: Sequence[Prompt]) -> list[Tensor]:
        counts = [span.layout.num_tokens for prompt in prompts for span in prompt.spans]
        return list(torch.split(values.flatten(0, 1), counts))

    def rows(self, patches: Tensor) -> Tensor:
        return block_means(patches, self.block)

    def signals(self, attention_taps: Sequence[Call], signal_taps: Sequence[Call]) -> dict[str, Callable[[], Tensor]]:
        signals = super().signals(attention_taps, signal_taps)
        # The projector reads blocks of patches; it could make no token of [CLS].
        signals.pop("cls_features", None)
        return signals

    def vision_flops(self, prompt: Prompt) -> int:
        num_tokens = sum(span.layout.num_tokens for span in prompt.spans)
        return self.vision_shape.flops(num_tokens // self.side**2)


def block_means(patches: Tensor, block: int) -> Tensor:
    """The mean of each ``block`` x ``block`` patches of square tiles: [tiles, patches, c] -> [tiles, tokens, c]."""
    side = math.isqrt(patches.shape[1])
    maps = patches.transpose(1, 2).reshape(len(patches), -1, side, side)
    return F.avg_pool2d(maps, block).flatten(2).transpose(1, 2)


def tiled_layout(rows: int, columns: int, side: int) -> VisualLayout:
    """``rows`` x ``columns`` tiles and the whole picture after them, each of ``side`` x ``side`` tokens."""
    tiles = [
        grid_boxes(side, side, (column / columns, row / rows, (column + 1) / columns, (row + 1) / rows))
        for row in range(rows)
        for column in range(columns)
    ]
    boxes = torch.cat([*tiles, grid_boxes(side, side)])
    view = torch.ones(len(boxes), dtype=torch.int64)
    view[-side * side :] = 0
    grids = ((side, side), (rows * side, columns * side)) if tiles else ((side, side),)
    return VisualLayout(boxes, view, grids)
