"""LLaVA-NeXT (1.6): an overview of the picture and a grid of tiles, padding cut off, a newline token after each row."""

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor
from transformers.image_processing_utils import select_best_resolution
from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches, unpad_image

from tops_engine.device.transfer import to_device
from tops_engine.errors import InvalidImage
from tops_engine.families.llava import VICUNA_TEMPLATE, ClipLike
from tops_engine.families.parts.vision_signals import Call, captured_calls
from tops_engine.families.prompt import Prompt
from tops_engine.flops import patches_per_side
from tops_engine.media.layout import VisualLayout, newline_layout


class LlavaNext(ClipLike):
    """``LlavaNextForConditionalGeneration``: llava-hf/llava-v1.6-vicuna-7b-hf, -mistral-7b-hf and others like them.

    Newline tokens are visual tokens like the others, but show no part of the picture and get no [CLS] attention: they
    compete for the budget and rarely win.
    """

    model_types: ClassVar[tuple[str, ...]] = ("llava_next",)
    checkpoints: ClassVar[dict[str, tuple[str, ...]]] = {
        "llava_next": (
            "llava-hf/llava-v1.6-vicuna-7b-hf",
            "llava-hf/llava-v1.6-vicuna-13b-hf",
            "llava-hf/llava-v1.6-mistral-7b-hf",
            "llava-hf/llava-v1.6-34b-hf",
            "llava-hf/llama3-llava-next-8b-hf",
            "llava-hf/llava-next-72b-hf",
        )
    }
    clip_tower: ClassVar[bool] = True
    default_chat_template: ClassVar[str | None] = VICUNA_TEMPLATE

    def __init__(self, model: Any, processor: Any) -> None:
        super().__init__(model, processor)
        #: Of pictures by (tiles, height, width), on the CPU; see :meth:`_order`.
        self._orders: dict[tuple[int, ...], Tensor | None] = {}

    def layouts(self, images: Sequence[Image.Image], pixels: dict[str, Tensor]) -> list[VisualLayout]:
        return [self._tiled_layout(image, pixels["image_sizes"][index]) for index, image in enumerate(images)]

    def _tiled_layout(self, image: Image.Image, size: Tensor) -> VisualLayout:
        num_base = self.side**2
        newlines = self._pack(torch.zeros(self._tiles(size), num_base, 1), size, torch.ones(1))[num_base:, 0] == 1
        if not newlines.any() or newlines.all():
            raise InvalidImage(f"A picture of {image.width} x {image.height} pixels is too narrow for this model.")
        return newline_layout(self.side, newlines, self._tiled_area(image, size))

    def project(self, prompts: Sequence[Prompt]) -> list[Tensor]:
        # Pictures have different numbers of tiles; what fills the others up is left out.
        tiles = [
            picture[:count]
            for prompt in prompts
            if prompt.images
            for picture, count in zip(prompt.pixels["pixel_values"], self.tile_counts(prompt), strict=True)
        ]
        rows = self.projector(self._tower(torch.cat(tiles)))
        return self._packed(rows, prompts, self.model.model.image_newline)

    def arrange(self, values: Tensor, prompts: Sequence[Prompt]) -> list[Tensor]:
        return self._packed(values, prompts, values.new_zeros(values.shape[-1]))

    def num_tiles(self, prompt: Prompt) -> int:
        return sum(self.tile_counts(prompt))

    def tile_counts(self, prompt: Prompt) -> list[int]:
        """How many tiles the tower sees of each picture of this prompt, the overview included."""
        return [self._tiles(size) for size in self._image_sizes([prompt])]

    @property
    def side(self) -> int:
        """Patches along a side of a tile."""
        return patches_per_side(self.model.config.vision_config)

    def _image_sizes(self, prompts: Sequence[Prompt]) -> Tensor:
        sizes = [prompt.pixels["image_sizes"] for prompt in prompts if prompt.images]
        return torch.cat(sizes) if sizes else torch.empty(0, 2, dtype=torch.int64)

    def _tiles(self, image_size: Tensor) -> int:
        """Tiles of a picture of (height, width), the overview included."""
        config = self.model.config
        return int(image_size_to_num_patches(image_size, config.image_grid_pinpoints, config.vision_config.image_size))

    def _tiled_area(self, image: Image.Image, size: Tensor) -> tuple[float, float, float, float]:
        """What the tiles' patches cover, as fractions of the picture; beyond 0 and 1 where they hold padding.

        The picture is scaled to fit the tiles and padded around its middle, and the padding is cut off evenly.
        """
        config = self.model.config
        best = select_best_resolution((image.height, image.width), config.image_grid_pinpoints)
        scale = min(best[0] / image.height, best[1] / image.width)
        tile = config.vision_config.image_size
        patches = torch.empty(1, best[0] // tile * self.side, best[1] // tile * self.side)
        rows, columns = unpad_image(patches, size).shape[1:]
        patch = tile / self.side
        half_width = columns * patch / min(math.ceil(image.width * scale), best[1]) / 2
        half_height = rows * patch / min(math.ceil(image.height * scale), best[0]) / 2
        return 0.5 - half_width, 0.5 - half_height, 0.5 + half_width, 0.5 + half_height

    def _tower(self, pixels: Tensor) -> Tensor:
        """What the tower makes of tiles: [t, 3, height, width] -> [t, patches, c]."""
        tower = self.model.model.vision_tower
        with captured_calls(*self.feature_layers) as layers:
            tower(to_device(pixels, tower.device, tower.dtype))
        return self._features(layers)

    def _features(self, layers: Sequence[Call]) -> Tensor:
        return torch.cat([layer.output[:, int(self.has_cls) :] for layer in layers], dim=-1)

    def _packed(self, values: Tensor, prompts: Sequence[Prompt], newline: Tensor) -> list[Tensor]:
        """Values of all pictures' patches, [tiles, patches, c], in the order of each picture's visual tokens."""
        counts = [count for prompt in prompts for count in self.tile_counts(prompt)]
        pieces = zip(torch.split(values, counts), self._image_sizes(prompts), strict=True)
        return [self._pack(piece, size, newline) for piece, size in pieces]

    def _pack(self, values: Tensor, image_size: Tensor, newline: Tensor) -> Tensor:
        """Values of a picture's patches in the order of its visual tokens.

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
            self._orders[case] = self._order(len(values), image_size)
        order = self._orders[case]
        if order is None:
            return self._pack_by_model(values, image_size, newline)
        rows = torch.cat([values.flatten(0, 1), newline[None].to(values.dtype)])
        return rows[to_device(order, rows.device)]

    def _order(self, num_tiles: int, image_size: Tensor) -> Tensor | None:
        """Which of its patches each visual token of a picture is, one more than the last for a newline: int64 [n].

        None where tokens are not patches as they are.
        """
        numbers = torch.arange(num_tiles * self.side**2, dtype=torch.float64).view(num_tiles, -1, 1)
        return self._pack_by_model(numbers, image_size, numbers.new_full((1,), numbers.numel()))[:, 0].long()

    def _pack_by_model(self, values: Tensor, image_size: Tensor, newline: Tensor) -> Tensor:
        """As :meth:`_pack`, by the model's own code, which makes the host wait for a GPU."""
        packed, _ = self.model.model.pack_image_features(
            [values],
            image_size[None],
            vision_feature_select_strategy=self.model.config.vision_feature_select_strategy,
            image_newline=newline,
        )
        return packed[0]
