"""Videos for Qwen-VL towers: patches that span two frames, made by the checkpoint's image processor.

The video processors of transformers do the same with torchvision.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image
from torch import Tensor
from transformers.utils import cached_file

from tops_engine.errors import InvalidVideo


class Bounds(NamedTuple):
    """The least and the most pixels."""

    least: int
    most: int


def video_bounds(source: str, revision: str | None, default: Bounds) -> Bounds:
    """What the checkpoint says about the size of videos, in whichever file it says so.

    Parameters
    ----------
    source, revision : a hub id or a folder.
    default : for checkpoints that say nothing.
    """
    settings = _read(source, revision, "video_preprocessor_config.json")
    settings = settings or _read(source, revision, "processor_config.json").get("video_processor", {})
    size = settings.get("size") or {}
    least = settings.get("min_pixels") or size.get("shortest_edge") or default.least
    most = settings.get("max_pixels") or size.get("longest_edge") or default.most
    return Bounds(least, most)


def _read(source: str, revision: str | None, name: str) -> dict[str, Any]:
    try:
        path = cached_file(source, name, revision=revision)
    except OSError:  # an optional file
        return {}
    return json.loads(Path(path).read_text(encoding="utf-8")) if path else {}


def pack_frames(frames: list[Image.Image], image_processor: Any, bounds: Bounds) -> tuple[Tensor, list[int]]:
    """Patches of a video; the last frame is repeated where frames are left over.

    Parameters
    ----------
    frames : of one size.
    image_processor : makes every patch of a still picture of ``temporal_patch_size`` equal frames.
    bounds : pixels of a frame.

    Returns
    -------
    Patches [times * rows * columns, values], and (times, rows, columns).

    Raises
    ------
    InvalidVideo
        If the image processor refuses the frames (one side over 200 times the other).
    """
    span = image_processor.temporal_patch_size
    frames = frames + frames[-1:] * (-len(frames) % span)
    size = {"shortest_edge": bounds.least, "longest_edge": bounds.most}
    try:
        stills = image_processor(images=frames, size=size, return_tensors="pt")
    except ValueError as error:
        width, height = frames[0].size
        raise InvalidVideo(f"The model's image processor refuses frames of {width} x {height}: {error}.") from error
    _, rows, columns = stills["image_grid_thw"][0].tolist()
    channels = len(image_processor.image_mean)
    patches = stills["pixel_values"].view(len(frames) // span, span, rows * columns, channels, span, -1)[..., 0, :]
    # [times, frames of a patch, patches, channels, pixels] -> a patch's channels, each with all of its frames
    patches = patches.permute(0, 2, 3, 1, 4).reshape(len(frames) // span * rows * columns, -1)
    return patches, [len(frames) // span, rows, columns]
