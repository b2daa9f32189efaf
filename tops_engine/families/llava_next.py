"""LLaVA-NeXT (1.6): an overview of the picture and a grid of tiles, padding cut off, a newline token after each row."""

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers.image_processing_utils import select_best_resolution
from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches, unpad_image

from tops_engine.errors import InvalidImage
from tops_engine.families.base import Prompt
from tops_engine.families.llava import VICUNA_TEMPLATE, ClipLike
from tops_engine.flops import patches_per_side
from tops_engine.layout import VisualLayout, newline_layout


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

    def layouts(self, images: Sequence[Image.Image], pixels: dict[str, Tensor]) -> list[VisualLayout]:
        return [self._tiled_layout(image, pixels["image_sizes"][index]) for index, image in enumerate(images)]

    def _tiled_layout(self, image: Image.Image, size: Tensor) -> VisualLayout:
        num_base = self.side**2
        newlines = self._pack(torch.zeros(self._tiles(size), num_base, 1), size, torch.ones(1))[num_base:, 0] == 1
        if not newlines.any() or newlines.all():
            raise InvalidImage(f"A picture of {image.width} x {image.height} pixels is too narrow for this model.")
        return newline_layout(self.side, newlines, self._tiled_area(image, size))

    def project(self, prompts: Sequence[Prompt]) -> list[Tensor]:
        vision_tower = self.model.model.vision_tower
        batches = [prompt.pixels["pixel_values"] for prompt in prompts if prompt.spans]
        most = max(batch.shape[1] for batch in batches)
        # Pictures have different numbers of tiles; the model itself drops the padding tiles.
        pixel_values = torch.cat([F.pad(batch, (0,) * 7 + (most - batch.shape[1],)) for batch in batches])
        output = self.model.model.get_image_features(
            pixel_values.to(vision_tower.device, vision_tower.dtype), self._image_sizes(prompts), return_dict=True
        )
        return list(output.pooler_output)

    def arrange(self, values: Tensor, prompts: Sequence[Prompt]) -> list[Tensor]:
        sizes = self._image_sizes(prompts)
        pieces = torch.split(values, [count for prompt in prompts for count in self.tile_counts(prompt)])
        newline = values.new_zeros(values.shape[-1])
        return [self._pack(piece, size, newline) for piece, size in zip(pieces, sizes, strict=True)]

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

    def _pack(self, values: Tensor, image_size: Tensor, newline: Tensor) -> Tensor:
        """Send values of patches through the model's own packing: [tiles, patches, c] and newline [c] -> [n, c]."""
        packed, _ = self.model.model.pack_image_features(
            [values],
            image_size[None],
            vision_feature_select_strategy=self.model.config.vision_feature_select_strategy,
            image_newline=newline,
        )
        return packed[0]
