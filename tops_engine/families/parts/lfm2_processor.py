"""LFM2-VL's processor without torchvision, which transformers' own needs: pictures whole or as tiles, as patches.

The steps, their order and their rounding are those of transformers' ``Lfm2VlImageProcessor``, in torch.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers import AutoTokenizer, BatchFeature, ProcessorMixin
from transformers.image_processing_base import ImageProcessingMixin

from tops_engine.errors import UnsupportedModel
from tops_engine.families.parts.frame_processor import RESAMPLING, normalize, resize

#: What transformers' image processor takes if the config does not say.
DEFAULTS: dict[str, Any] = {
    "downsample_factor": 2,
    "do_image_splitting": True,
    "encoder_patch_size": 16,
    "image_mean": (0.5, 0.5, 0.5),
    "image_std": (0.5, 0.5, 0.5),
    "max_image_tokens": 256,
    "max_pixels_tolerance": 2.0,
    "max_tiles": 10,
    "min_image_tokens": 64,
    "min_tiles": 2,
    "resample": 2,
    "rescale_factor": 1 / 255,
    "tile_size": 512,
    "use_thumbnail": True,
}


class Plan(NamedTuple):
    """How a picture is shown to the vision tower.

    Attributes
    ----------
    rows, columns : of tiles; 1 and 1 if it is not cut.
    height, width : of the whole picture, in tokens.
    """

    rows: int
    columns: int
    height: int
    width: int

    @property
    def is_cut(self) -> bool:
        return self.rows * self.columns > 1


class Lfm2PictureProcessor(ImageProcessingMixin):  # type: ignore[misc]  # transformers types it as Any
    """Scale and cut pictures, and write them as rows of patches.

    Parameters
    ----------
    settings : of the checkpoint's ``preprocessor_config.json``.

    Raises
    ------
    UnsupportedModel
        If it shows tiles without the whole picture.
    """

    model_input_names = ("pixel_values", "pixel_attention_mask", "spatial_shapes")

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.settings = DEFAULTS | {name: settings[name] for name in DEFAULTS if settings.get(name) is not None}
        cuts = self.settings["do_image_splitting"]
        if cuts and (not self.settings["use_thumbnail"] or self.settings["min_tiles"] < 2):
            raise UnsupportedModel(
                "The checkpoint's image processor shows tiles without the whole picture, which is not supported; set "
                '"use_thumbnail": true and "min_tiles": 2 in its preprocessor_config.json.'
            )
        self.patch_size = int(self.settings["encoder_patch_size"])
        self.block = int(self.settings["downsample_factor"])
        self.tile_size = int(self.settings["tile_size"])
        tile = (self.tile_size // self.patch_size) ** 2 if self.settings["do_image_splitting"] else 0
        self.max_patches = max(self.settings["max_image_tokens"] * self.block**2, tile)

    @property
    def tile_side(self) -> int:
        """Tokens along a side of a tile."""
        return self.tile_size // self.patch_size // self.block

    def plan(self, height: int, width: int) -> Plan:
        """Return how a picture of this size, in pixels, is shown."""
        token = self.patch_size * self.block
        whole = self._whole(height, width)
        rounded = [max(self.patch_size, round(side / token) * token) for side in (height, width)]
        most = self.settings["max_image_tokens"] * token**2
        is_large = math.prod(rounded) > most * self.settings["max_pixels_tolerance"]
        cuts = self.settings["do_image_splitting"] and is_large
        rows, columns = self._tiles(height, width) if cuts else (1, 1)
        return Plan(rows, columns, *whole)

    def __call__(self, images: Sequence[Image.Image], **_options: Any) -> BatchFeature:
        """Return what the model takes: float32 [tiles, max_patches, values], their mask and their sizes in patches."""
        views = [view for image in images for view in self._views(image)]
        shapes = [(view.shape[1] // self.patch_size, view.shape[2] // self.patch_size) for view in views]
        patches = [self._patches(view) for view in views]
        masks = [torch.ones(len(rows), dtype=torch.int32) for rows in patches]
        return BatchFeature(
            {
                "pixel_values": torch.stack([_padded(rows, self.max_patches) for rows in patches]),
                "pixel_attention_mask": torch.stack([_padded(mask, self.max_patches) for mask in masks]),
                "spatial_shapes": torch.tensor(shapes),
            }
        )

    def fetch_images(self, image_url_or_urls: Any) -> Any:
        """Return the pictures, which are never addresses here."""
        return image_url_or_urls

    def _views(self, image: Image.Image) -> list[Tensor]:
        """Return the tiles and the whole picture, uint8 [3, height, width] each."""
        pixels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).contiguous()
        plan, token = self.plan(image.height, image.width), self.patch_size * self.block
        resample = RESAMPLING[self.settings["resample"]]
        views = []
        if plan.is_cut:
            size = self.tile_size
            scaled = resize(pixels, (plan.rows * size, plan.columns * size), resample)
            views = [tile for row in torch.split(scaled, size, dim=1) for tile in torch.split(row, size, dim=2)]
        return [*views, resize(pixels, (plan.height * token, plan.width * token), resample)]

    def _patches(self, view: Tensor) -> Tensor:
        settings, size = self.settings, self.patch_size
        values = normalize(view, settings["image_mean"], settings["image_std"], settings["rescale_factor"])
        rows, columns = view.shape[1] // size, view.shape[2] // size
        return values.reshape(3, rows, size, columns, size).permute(1, 3, 2, 4, 0).reshape(rows * columns, -1)

    def _whole(self, height: int, width: int) -> tuple[int, int]:
        """Return rows and columns of tokens of the whole picture."""
        token = self.patch_size * self.block
        least, most = (self.settings[f"{bound}_image_tokens"] * token**2 for bound in ("min", "max"))
        rows, columns = (max(token, round(side / token) * token) for side in (height, width))
        if rows * columns > most:
            shrink = math.sqrt(height * width / most)
            rows, columns = (max(token, math.floor(side / shrink / token) * token) for side in (height, width))
        elif rows * columns < least:
            grow = math.sqrt(least / (height * width))
            rows, columns = (math.ceil(side * grow / token) * token for side in (height, width))
        return rows // token, columns // token

    def _tiles(self, height: int, width: int) -> tuple[int, int]:
        """Return rows and columns of the grid of tiles whose aspect ratio is nearest to that of the picture."""
        least, most = self.settings["min_tiles"], self.settings["max_tiles"]
        # Grids with equally many tiles stay in the order of a set, as in transformers, where a tie depends on it.
        grids = {
            (columns, rows)
            for number in range(least, most + 1)
            for columns in range(1, number + 1)
            for rows in range(1, number + 1)
            if least <= columns * rows <= most
        }
        best, nearest = (1, 1), math.inf
        for columns, rows in sorted(grids, key=lambda grid: grid[0] * grid[1]):
            difference = abs(width / height - columns / rows)
            larger = height * width > 0.5 * self.tile_size**2 * columns * rows
            if difference < nearest or (difference == nearest and larger):
                best, nearest = (columns, rows), difference
        return best[1], best[0]


class Lfm2Processor(ProcessorMixin):  # type: ignore[misc]  # transformers types it as Any
    """Write a picture as the tokens of its tiles, with a token that names row and column before each."""

    def __init__(self, image_processor: Any, tokenizer: Any, chat_template: str | None = None) -> None:
        super().__init__(image_processor, tokenizer, chat_template=chat_template)
        self.image_token, self.image_start_token = "<image>", "<|image_start|>"
        self.image_end_token, self.image_thumbnail_token = "<|image_end|>", "<|img_thumbnail|>"
        self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)

    @classmethod
    def load(cls, source: str, revision: str | None) -> "Lfm2Processor":
        """Load the checkpoint's tokenizer, chat template and settings of the image processor."""
        settings, _ = ImageProcessingMixin.get_image_processor_dict(source, revision=revision)
        tokenizer = AutoTokenizer.from_pretrained(source, revision=revision, trust_remote_code=False)
        found, _ = ProcessorMixin.get_processor_dict(source, revision=revision)
        template = found.get("chat_template") or tokenizer.chat_template
        return cls(Lfm2PictureProcessor(**settings), tokenizer, template)

    def _process_images(self, images: Sequence[Image.Image], **options: Any) -> Any:
        texts = [self._text(self.image_processor.plan(image.height, image.width)) for image in images]
        return self.image_processor(images, **options), texts

    def _text(self, plan: Plan) -> str:
        parts = [self.image_start_token]
        if plan.is_cut:
            tile = self.image_token * self.image_processor.tile_side**2
            for row in range(1, plan.rows + 1):
                parts += [f"<|img_row_{row}_col_{column}|>{tile}" for column in range(1, plan.columns + 1)]
            parts.append(self.image_thumbnail_token)
        return "".join([*parts, self.image_token * plan.height * plan.width, self.image_end_token])


def _padded(rows: Tensor, length: int) -> Tensor:
    return F.pad(rows, (0, 0) * (rows.ndim - 1) + (0, length - len(rows)))
