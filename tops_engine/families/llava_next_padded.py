"""LLaVA-NeXT as the papers on pruning run it: 2 x 2 tiles for every picture, padding included, no newline tokens.

The published model cuts off the padding of the tiles and ends each of their rows with a newline token, so that pictures
differ in their number of tokens (2,928 for a square picture of 672 pixels). The papers state 2,880 for every picture:
their code sets the merging of tiles to ``spatial`` instead of ``spatial_unpad`` and fixes the resolution (VisPruner,
issue 3; FasterVLM, issue 8).
"""

import math
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import LlavaNextProcessor

from tops_engine.errors import UnsupportedModel
from tops_engine.families.base import Family
from tops_engine.families.llava_next import LlavaNext
from tops_engine.families.parts.anyres import AnyResTiles
from tops_engine.media.layout import VisualLayout, grid_boxes


def padded(family: type[Family]) -> type[Family]:
    """Return the family that runs the same checkpoints without cutting off padding.

    Raises
    ------
    UnsupportedModel
        If the family has no padding to cut off.
    """
    if family is not LlavaNext:
        raise UnsupportedModel("unpad=False is for LLaVA-NeXT (llava_next) only; leave it out for this model.")
    return PaddedLlavaNext


class PaddedProcessor(LlavaNextProcessor):  # type: ignore[misc]  # transformers types it as Any
    """The published processor, with as many placeholders as there are patches."""

    def _get_unpadded_features(
        self, height: int, width: int, patches_height: int, patches_width: int, scale_height: int, scale_width: int
    ) -> tuple[int, int]:
        return patches_height * scale_height * patches_width * scale_width, 0


class PaddedTiles(AnyResTiles):
    """An overview, then all patches of the tiles in raster order."""

    def pack_by_model(self, values: Tensor, image_size: Tensor, newline: Tensor) -> Tensor:
        overview, tiles = values[0], values[1:]
        rows, columns = self._grid
        patches = tiles.view(rows, columns, self.side, self.side, -1).permute(0, 2, 1, 3, 4)
        return torch.cat([overview, patches.flatten(0, 3)])

    @property
    def _grid(self) -> tuple[int, int]:
        """Rows and columns of tiles, the same for every picture."""
        ((height, width),) = self.config.image_grid_pinpoints
        tile = self.config.vision_config.image_size
        return height // tile, width // tile

    def _layout(self, image: Image.Image, size: Tensor) -> VisualLayout:
        rows, columns = (count * self.side for count in self._grid)
        ((height, width),) = self.config.image_grid_pinpoints
        scale = min(height / image.height, width / image.width)
        # The picture is scaled to fit the tiles and padded around its middle: their area is larger than the picture.
        half_width = width / min(math.ceil(image.width * scale), width) / 2
        half_height = height / min(math.ceil(image.height * scale), height) / 2
        area = (0.5 - half_width, 0.5 - half_height, 0.5 + half_width, 0.5 + half_height)
        boxes = torch.cat([grid_boxes(self.side, self.side), grid_boxes(rows, columns, area)])
        view = torch.cat([torch.zeros(self.side**2), torch.ones(rows * columns)]).long()
        return VisualLayout(boxes, view, ((self.side, self.side), (rows, columns)))


class PaddedLlavaNext(LlavaNext, register=False):
    """LLaVA-NeXT with the same number of visual tokens for every picture (``ModelSpec(unpad=False)``)."""

    processor_class = PaddedProcessor
    one_size = True

    def __init__(self, model: Any, processor: Any) -> None:
        squares = [size for size in model.config.image_grid_pinpoints if size[0] == size[1]]
        if not squares:
            raise UnsupportedModel("unpad=False needs a square grid of tiles, which the checkpoint does not have.")
        model.config.image_grid_pinpoints = processor.image_processor.image_grid_pinpoints = [max(squares)]
        super().__init__(model, processor)
        self.tiles = PaddedTiles(model)
