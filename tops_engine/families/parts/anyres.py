"""AnyRes pictures of LLaVA-NeXT: an overview and a grid of tiles without padding, a newline token after each row."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers.image_processing_utils import select_best_resolution
from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches, unpad_image

from tops_engine.device.transfer import to_device
from tops_engine.errors import InvalidImage
from tops_engine.flops import patches_per_side
from tops_engine.media.layout import VisualLayout, newline_layout


class AnyResTiles:
    """Which tiles a picture has, and in which order their patches become visual tokens.

    Parameters
    ----------
    model : a ``LlavaNextForConditionalGeneration`` object or one of its descendants. Its ``pack_image_features``
        defines the order.
    """

    def __init__(self, model: Any) -> None:
        self.model = model.model
        self.config = model.config
        #: By (tiles, height, width) of the picture, on the CPU; see :meth:`order`.
        self._orders: dict[tuple[int, ...], Tensor | None] = {}

    @property
    def side(self) -> int:
        """Patches along a side of a tile."""
        return patches_per_side(self.config.vision_config)

    def counts(self, image_sizes: Sequence[Tensor]) -> list[int]:
        """Return the number of tiles of each picture of one prompt, the overview included.

        Parameters
        ----------
        image_sizes : int64 [2] for each picture, height and width in pixels.
        """
        return [self._count(size) for size in image_sizes]

    def num_tokens(self, width: int, height: int, alone: bool) -> int:
        """Return the number of visual tokens of a picture of that size, perhaps the only one of its prompt."""
        size = torch.tensor([height, width])
        return len(self.pack_by_model(torch.zeros(self._count(size), self.side**2, 1), size, torch.ones(1)))

    def layouts(self, images: Sequence[Image.Image], image_sizes: Sequence[Tensor]) -> list[VisualLayout]:
        """Return the layout of each picture of one prompt.

        Raises
        ------
        InvalidImage
            If a picture is so narrow that no column or row of patches is left without padding.
        """
        return [self._layout(image, size) for image, size in zip(images, image_sizes, strict=True)]

    def pack(self, values: Tensor, image_size: Tensor, newline: Tensor) -> Tensor:
        """Bring values of a picture's patches into the order of its visual tokens.

        Parameters
        ----------
        values : [tiles, patches, c].
        image_size : int64 [2] on the CPU, height and width.
        newline : [c], the value of a newline token.

        Returns
        -------
        [n, c]
        """
        case = (len(values), *image_size.tolist())
        if case not in self._orders:
            self._orders[case] = self.order(len(values), image_size)
        order = self._orders[case]
        if order is None:
            return self.pack_by_model(values, image_size, newline)
        rows = torch.cat([values.flatten(0, 1), newline[None].to(values.dtype)])
        return rows[to_device(order, rows.device)]

    def order(self, num_tiles: int, image_size: Tensor) -> Tensor | None:
        """Return the patch that each visual token of a picture shows: int64 [n].

        A newline token has the number of patches as its index. The result is None if tokens mix several patches.
        """
        numbers = torch.arange(num_tiles * self.side**2, dtype=torch.float64).view(num_tiles, -1, 1)
        return self.pack_by_model(numbers, image_size, numbers.new_full((1,), numbers.numel()))[:, 0].long()

    def pack_by_model(self, values: Tensor, image_size: Tensor, newline: Tensor) -> Tensor:
        """Do what :meth:`pack` does with the model's own code, which makes the host wait for a GPU."""
        packed, _ = self.model.pack_image_features(
            [values],
            image_size[None],
            vision_feature_select_strategy=self.config.vision_feature_select_strategy,
            image_newline=newline,
        )
        return packed[0]

    def _count(self, image_size: Tensor) -> int:
        config = self.config
        return int(image_size_to_num_patches(image_size, config.image_grid_pinpoints, config.vision_config.image_size))

    def _layout(self, image: Image.Image, size: Tensor) -> VisualLayout:
        num_overview = self.side**2
        packed = self.pack(torch.zeros(self._count(size), num_overview, 1), size, torch.ones(1))
        newlines = packed[num_overview:, 0] == 1
        if not newlines.any() or newlines.all():
            raise InvalidImage(f"A picture of {image.width} x {image.height} pixels is too narrow for this model.")
        return newline_layout(self.side, newlines, self._tiled_area(image, size))

    def _tiled_area(self, image: Image.Image, size: Tensor) -> tuple[float, float, float, float]:
        """Return the area that the tiles' patches cover, as fractions of the picture.

        The picture is scaled to fit the tiles and padded around its middle. Padding is cut off evenly on both sides;
        what remains of it makes the area extend below 0 and above 1.
        """
        config = self.config
        best = select_best_resolution((image.height, image.width), config.image_grid_pinpoints)
        scale = min(best[0] / image.height, best[1] / image.width)
        tile = config.vision_config.image_size
        patches = torch.empty(1, best[0] // tile * self.side, best[1] // tile * self.side)
        rows, columns = unpad_image(patches, size).shape[1:]
        patch = tile / self.side
        half_width = columns * patch / min(math.ceil(image.width * scale), best[1]) / 2
        half_height = rows * patch / min(math.ceil(image.height * scale), best[0]) / 2
        return 0.5 - half_width, 0.5 - half_height, 0.5 + half_width, 0.5 + half_height
