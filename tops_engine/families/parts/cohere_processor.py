"""Command A Vision's processor without torchvision, which transformers' own needs: tiles and the whole picture.

The steps, their order and their rounding are those of transformers' ``Cohere2VisionImageProcessor``, in torch.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoTokenizer, BatchFeature, ProcessorMixin
from transformers.image_processing_base import ImageProcessingMixin

from tops_engine.families.parts.frame_processor import CLIP_COLOURS, RESAMPLING, normalize, resize

#: What transformers' image processor takes if the config does not say.
DEFAULTS: dict[str, Any] = {
    "crop_to_patches": True,
    "max_patches": 12,
    "patch_size": 16,
    "resample": 3,
    "rescale_factor": 1 / 255,
    "size": {"height": 512, "width": 512},
    **CLIP_COLOURS,
}


class CoherePictures(ImageProcessingMixin):  # type: ignore[misc]  # transformers types it as Any
    """Cut pictures into tiles, with the whole picture after them.

    Parameters
    ----------
    settings : of the checkpoint's ``preprocessor_config.json``.

    Attributes
    ----------
    max_patches : the most tiles of a picture, the whole picture not counted.
    patch_size : tokens along a side of a tile.
    """

    model_input_names = ("pixel_values",)

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        chosen = DEFAULTS | {name: settings[name] for name in DEFAULTS if settings.get(name) is not None}
        self.size = dict(chosen["size"])
        self.max_patches = int(chosen["max_patches"]) if chosen["crop_to_patches"] else 1
        self.patch_size = int(chosen["patch_size"])
        self.resample = RESAMPLING[int(chosen["resample"])]
        self.image_mean, self.image_std = chosen["image_mean"], chosen["image_std"]
        self.rescale_factor = chosen["rescale_factor"]

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Return rows and columns of the tiles: those that need the least enlarging, or else the least shrinking."""
        tile, most = self.size["height"], self.max_patches
        grids = [
            (rows, columns) for columns in range(1, most + 1) for rows in range(1, most + 1) if rows * columns <= most
        ]
        # Of grids that are equally good, the first one of those with the fewest tiles counts.
        grids.sort(key=lambda grid: grid[0] * grid[1])
        scales = [min(columns * tile / width, rows * tile / height) for rows, columns in grids]
        if max(scales) < 1:
            return grids[scales.index(max(scales))]
        return grids[scales.index(min(scale for scale in scales if scale >= 1))]

    def num_tiles(self, height: int, width: int) -> int:
        """Return the number of tiles of a picture, the whole picture included."""
        rows, columns = self.grid(height, width)
        return rows * columns + (rows * columns > 1)

    def __call__(self, images: Sequence[Image.Image], **_options: Any) -> BatchFeature:
        """Return what the model takes: float32 [tiles, 3, height, width]."""
        return BatchFeature({"pixel_values": torch.cat([self._tiles(image) for image in images])})

    def fetch_images(self, image_url_or_urls: Any) -> Any:
        """Return the pictures, which are never addresses here."""
        return image_url_or_urls

    def _tiles(self, image: Image.Image) -> Tensor:
        pixels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).contiguous()
        height, width = self.size["height"], self.size["width"]
        rows, columns = self.grid(image.height, image.width)
        scaled = resize(pixels, (rows * height, columns * width), self.resample)
        tiles = [tile for row in torch.split(scaled, height, dim=1) for tile in torch.split(row, width, dim=2)]
        if len(tiles) > 1:
            tiles.append(resize(pixels, (height, width), self.resample))
        return torch.stack([normalize(tile, self.image_mean, self.image_std, self.rescale_factor) for tile in tiles])


class CohereProcessor(ProcessorMixin):  # type: ignore[misc]  # transformers types it as Any
    """Write a picture as the tokens of its tiles, with a line break after each tile."""

    def __init__(self, image_processor: Any, tokenizer: Any, chat_template: str | None = None) -> None:
        super().__init__(image_processor, tokenizer, chat_template=chat_template)
        for name in ("image_token", "image_token_id", "boi_token", "eoi_token", "img_line_break_token"):
            setattr(self, name, getattr(tokenizer, name))

    @classmethod
    def load(cls, source: str, revision: str | None) -> "CohereProcessor":
        """Load the checkpoint's tokenizer, chat template and settings of the image processor."""
        settings, _ = ImageProcessingMixin.get_image_processor_dict(source, revision=revision)
        tokenizer = AutoTokenizer.from_pretrained(source, revision=revision, trust_remote_code=False)
        found, _ = ProcessorMixin.get_processor_dict(source, revision=revision)
        template = found.get("chat_template") or tokenizer.chat_template
        return cls(CoherePictures(**settings), tokenizer, template)

    def _process_images(self, images: Sequence[Image.Image], **options: Any) -> Any:
        tile = self.image_token * self.image_processor.patch_size**2 + self.img_line_break_token
        counts = [self.image_processor.num_tiles(image.height, image.width) for image in images]
        texts = [f"{self.boi_token}{tile * count}{self.eoi_token}" for count in counts]
        return self.image_processor(images, **options), texts
