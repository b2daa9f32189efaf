"""Frames of videos for Qwen-VL towers: patches that span two frames, made by the checkpoint's image processor.

transformers' video processors compute the same with torchvision.
"""

import json
import math
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor
from transformers.utils import cached_file

from tops_engine.errors import InvalidVideo, reason_of
from tops_engine.media.bounds import Bounds


def video_bounds(source: str, revision: str | None, default: Bounds) -> Bounds:
    """Read the size limits of videos from the checkpoint's video processor config.

    Parameters
    ----------
    source, revision : a hub id or a folder.
    default : for checkpoints that have no such config.
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


def bounds_of_a_frame(bounds: Bounds, num_frames: int, step: int) -> Bounds:
    """Divide bounds of all frames together, for families that have such.

    Parameters
    ----------
    num_frames : of the video.
    step : frames that a patch spans.
    """
    count = math.ceil(num_frames / step) * step
    return Bounds(math.ceil(bounds.least / count), bounds.most // count)


def text_with_times(tokenizer: Any, config: Any, num_tokens: int, timestamps: list[float]) -> str:
    """Return the text of a video: the visual tokens of each step of frames after the time in their middle, in seconds.

    Parameters
    ----------
    tokenizer : of the checkpoint.
    config : of the model; names the tokens of a video and says how many frames a step has.
    num_tokens : visual tokens of a step.
    timestamps : of the frames, in seconds. The last one is repeated until the last step is full.
    """
    ids = [config.vision_start_token_id, config.video_token_id, config.vision_end_token_id]
    start, token, end = tokenizer.convert_ids_to_tokens(ids)
    tokens, step = f"{start}{token * num_tokens}{end}", config.vision_config.temporal_patch_size
    seconds = timestamps + timestamps[-1:] * (-len(timestamps) % step)
    return "".join(
        f"<{(seconds[first] + seconds[first + step - 1]) / 2:.1f} seconds>{tokens}"
        for first in range(0, len(seconds), step)
    )


def pack_frames(frames: list[Image.Image], image_processor: Any, bounds: Bounds) -> tuple[Tensor, list[int]]:
    """Make the patches of a video. The last frame is repeated until all patches are full.

    Parameters
    ----------
    frames : of one size.
    image_processor : makes every patch of a still picture of ``temporal_patch_size`` equal frames.
    bounds : limits of the pixels of a frame.

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
        raise InvalidVideo(
            f"The model's image processor refuses frames of {width} x {height}: {reason_of(error)}."
        ) from error
    _, rows, columns = stills["image_grid_thw"][0].tolist()
    channels = len(image_processor.image_mean)
    patches = stills["pixel_values"].view(len(frames) // span, span, rows * columns, channels, span, -1)[..., 0, :]
    # [times, frames of a patch, patches, channels, pixels] -> the channels of a patch, each with all of its frames
    patches = patches.permute(0, 2, 3, 1, 4).reshape(len(frames) // span * rows * columns, -1)
    return patches, [len(frames) // span, rows, columns]
