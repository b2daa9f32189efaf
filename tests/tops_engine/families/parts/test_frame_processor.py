"""Test frames of videos: resized as by Pillow, and equal to those of transformers' video processors."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.conftest import Picture
from tests.support.checkpoints_video import save_next_video, save_onevision
from tops_engine.families.parts.frame_processor import FrameProcessor


def gradient(size: tuple[int, int]) -> Image.Image:
    """Return a picture whose red grows from left to right and green from top to bottom."""
    width, height = size
    red = torch.linspace(0, 255, width).expand(height, width)
    green = torch.linspace(0, 255, height)[:, None].expand(height, width)
    pixels = torch.stack([red, green, torch.zeros(height, width)], dim=-1).round().byte()
    return Image.fromarray(pixels.numpy())


def test_frames_are_resized_as_pillow_does_to_one_grey_level() -> None:
    for size in [(90, 60), (60, 200), (70, 70)]:
        frame = gradient(size)
        processor = FrameProcessor(
            size={"height": 70, "width": 70},
            crop_size={},
            resample="bicubic",
            image_mean=(0.0, 0.0, 0.0),
            image_std=(1.0, 1.0, 1.0),
            rescale_factor=1.0,
            do_resize=True,
            do_center_crop=False,
        )
        expected = np.asarray(frame.resize((70, 70), Image.Resampling.BICUBIC)).transpose(2, 0, 1)
        assert np.abs(processor([frame])[0].numpy() - expected).max() <= 1


@pytest.mark.parametrize("save", [save_onevision, save_next_video])
def test_frames_are_those_of_the_checkpoints_own_video_processor(
    save: Callable[..., Path], tmp_path: Path, picture: Picture
) -> None:
    pytest.importorskip("torchvision", reason="the video processors of transformers need torchvision")
    from transformers import AutoVideoProcessor

    folder = save(tmp_path)
    frames = [picture(90, 60, index) for index in range(3)]
    theirs = AutoVideoProcessor.from_pretrained(folder)
    expected = theirs([np.stack([np.asarray(frame) for frame in frames])], return_tensors="pt")["pixel_values_videos"]
    assert torch.equal(FrameProcessor.from_pretrained(str(folder), None, {})(frames), expected[0])
