"""Prepare frames of videos as transformers' video processors do, without torchvision, which those need.

They resize, crop and normalise in torch. The results here are equal to theirs bit for bit.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers.video_processing_utils import BaseVideoProcessor

from tops_engine.errors import UnsupportedModel

#: CLIP's mean and standard deviation of colours.
CLIP_COLOURS: dict[str, Any] = {
    "image_mean": (0.48145466, 0.4578275, 0.40821073),
    "image_std": (0.26862954, 0.26130258, 0.27577711),
}

#: Filters by Pillow's numbers, which processor configs contain.
RESAMPLING = {2: "bilinear", 3: "bicubic"}


@dataclass(frozen=True)
class FrameProcessor:
    """Turn frames into the pixels that a vision tower sees.

    Attributes
    ----------
    size : ``height`` and ``width``, or ``shortest_edge``, to resize to, in pixels.
    crop_size : ``height`` and ``width`` of the middle that is cut out; black pixels are added if the frame is smaller.
    resample : ``bilinear`` or ``bicubic``.
    image_mean, image_std : mean and standard deviation of the colours, after ``rescale_factor`` was applied.
    rescale_factor : factor of the colours, 1/255 in most checkpoints.
    do_resize, do_center_crop : whether these steps are done.
    """

    size: dict[str, int]
    crop_size: dict[str, int]
    resample: str
    image_mean: tuple[float, ...]
    image_std: tuple[float, ...]
    rescale_factor: float
    do_resize: bool
    do_center_crop: bool

    @classmethod
    def from_pretrained(cls, source: str, revision: str | None, defaults: dict[str, Any]) -> Self:
        """Read a checkpoint's video processor config.

        Parameters
        ----------
        defaults : what the class of its video processor takes if the config does not say.
        """
        config, _ = BaseVideoProcessor.get_video_processor_dict(source, revision=revision or "main")
        return cls.from_config(defaults | {name: value for name, value in config.items() if value is not None})

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Read a video processor's config.

        Raises
        ------
        UnsupportedModel
            If it resizes with another filter than Pillow's 2 (bilinear) or 3 (bicubic).
        """
        resample = RESAMPLING.get(config["resample"])
        if resample is None:
            raise UnsupportedModel(
                f"The checkpoint resizes frames with Pillow's filter {config['resample']}; supported are 2 (bilinear) "
                "and 3 (bicubic)."
            )
        return cls(
            _sides(config["size"]),
            _sides(config.get("crop_size") or {}),
            resample,
            tuple(config["image_mean"]),
            tuple(config["image_std"]),
            config.get("rescale_factor") or 1 / 255,
            config.get("do_resize", True),
            bool(config.get("do_center_crop")),
        )

    def __call__(self, frames: Sequence[Image.Image]) -> Tensor:
        """Process frames of one size: float32 [frames, 3, height, width]."""
        return torch.stack([self._process(frame) for frame in frames])

    def _process(self, frame: Image.Image) -> Tensor:
        pixels = torch.from_numpy(np.array(frame.convert("RGB"))).permute(2, 0, 1).contiguous()
        if self.do_resize:
            pixels = resize(pixels, self._resized(frame.height, frame.width), self.resample)
        if self.do_center_crop:
            pixels = _center_crop(pixels, self.crop_size["height"], self.crop_size["width"])
        return normalize(pixels, self.image_mean, self.image_std, self.rescale_factor)

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        if "shortest_edge" not in self.size:
            return self.size["height"], self.size["width"]
        short, long = sorted((height, width))
        new_short, new_long = self.size["shortest_edge"], int(self.size["shortest_edge"] * long / short)
        return (new_short, new_long) if height <= width else (new_long, new_short)


def resize(pixels: Tensor, size: tuple[int, int], resample: str) -> Tensor:
    """Scale uint8 [3, height, width], with antialiasing where it shrinks."""
    if pixels.shape[1:] == size:
        return pixels
    return F.interpolate(pixels[None], size, mode=resample, align_corners=False, antialias=True)[0]


def normalize(pixels: Tensor, mean: Sequence[float], std: Sequence[float], rescale_factor: float) -> Tensor:
    """Compute ``(value * rescale_factor - mean) / std`` in one step: uint8 [3, height, width] to float32."""
    shift, scale = (torch.tensor(values)[:, None, None] * (1.0 / rescale_factor) for values in (mean, std))
    return pixels.float().sub_(shift).div_(scale)


def _center_crop(pixels: Tensor, height: int, width: int) -> Tensor:
    rows, columns = max(0, height - pixels.shape[1]), max(0, width - pixels.shape[2])
    pixels = F.pad(pixels, (columns // 2, (columns + 1) // 2, rows // 2, (rows + 1) // 2))
    top, left = (pixels.shape[1] - height) // 2, (pixels.shape[2] - width) // 2
    return pixels[:, top : top + height, left : left + width]


def _sides(size: Any) -> dict[str, int]:
    return {"height": size, "width": size} if isinstance(size, int) else dict(size)
