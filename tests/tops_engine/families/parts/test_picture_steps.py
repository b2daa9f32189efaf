"""Test that the faster steps of image processors give what transformers' own steps give, bit for bit."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import (
    CLIPImageProcessorPil,
    GotOcr2ImageProcessorPil,
    Idefics3ImageProcessorPil,
    LlavaNextImageProcessorPil,
    LlavaOnevisionImageProcessorPil,
    PixtralImageProcessorPil,
    Qwen2VLImageProcessorPil,
    SiglipImageProcessorPil,
)

from tops_engine.families.parts.picture_steps import with_picture_steps

PINPOINTS = [[28, 56], [56, 28], [56, 56]]
SQUARE = {"height": 28, "width": 28}
PROCESSORS = {
    "clip": CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size=SQUARE),
    "siglip": SiglipImageProcessorPil(size=SQUARE),
    "llava_next": LlavaNextImageProcessorPil(
        size={"shortest_edge": 28}, crop_size=SQUARE, image_grid_pinpoints=PINPOINTS
    ),
    "onevision": LlavaOnevisionImageProcessorPil(size=SQUARE, image_grid_pinpoints=PINPOINTS),
    "qwen": Qwen2VLImageProcessorPil(size={"shortest_edge": 28**2, "longest_edge": 16 * 28**2}),
    "idefics3": Idefics3ImageProcessorPil(size={"longest_edge": 56}, max_image_size={"longest_edge": 28}),
    "internvl": GotOcr2ImageProcessorPil(size=SQUARE, crop_to_patches=True, max_patches=4),
    "pixtral": PixtralImageProcessorPil(size={"longest_edge": 64}, patch_size=8),
}


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def assert_same(one: Any, other: Any) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(torch.as_tensor(value), torch.as_tensor(other[name])), name


@settings(max_examples=12, deadline=None)
@given(width=st.integers(9, 90), height=st.integers(9, 90))
@pytest.mark.parametrize("name", PROCESSORS)
def test_pixels_are_those_of_transformers(name: str, width: int, height: int) -> None:
    theirs, picture = PROCESSORS[name], noise(width, height)
    assert_same(with_picture_steps(theirs)(picture, return_tensors="pt"), theirs(picture, return_tensors="pt"))


@settings(max_examples=12, deadline=None)
@given(width=st.integers(9, 90), height=st.integers(9, 90))
@pytest.mark.parametrize("name", PROCESSORS)
def test_pixels_scaled_by_a_device_are_those_of_transformers(name: str, width: int, height: int) -> None:
    theirs, picture = PROCESSORS[name], noise(width, height)
    ours = with_picture_steps(theirs)
    ours.scaling_device = torch.device("cpu")
    assert_same(ours(picture, return_tensors="pt"), theirs(picture, return_tensors="pt"))


@pytest.mark.parametrize("size", [(28, 28), (56, 28), (28, 56), (56, 56), (28, 47)])
@pytest.mark.parametrize("name", PROCESSORS)
def test_pictures_that_have_the_size_already_are_the_same(name: str, size: tuple[int, int]) -> None:
    theirs, picture = PROCESSORS[name], noise(*size)
    assert_same(with_picture_steps(theirs)(picture, return_tensors="pt"), theirs(picture, return_tensors="pt"))


@pytest.mark.parametrize(
    "options",
    [
        {"do_rescale": False},
        {"do_normalize": False},
        {"rescale_factor": 1 / 127.5},
        {"do_resize": False, "do_center_crop": False},
        {"image_mean": 0.5, "image_std": 0.25},
    ],
)
def test_steps_that_are_left_out_or_set_are_the_same(options: dict[str, Any]) -> None:
    theirs, picture = PROCESSORS["clip"], noise(40, 33)
    made = with_picture_steps(theirs)(picture, return_tensors="pt", **options)
    assert_same(made, theirs(picture, return_tensors="pt", **options))


def test_floats_and_grey_pictures_are_the_same() -> None:
    theirs = PROCESSORS["clip"]
    floats = np.random.default_rng(1).random((3, 40, 33), dtype=np.float32)
    for picture in (floats, noise(40, 33).convert("L")):
        assert_same(with_picture_steps(theirs)(picture, return_tensors="pt"), theirs(picture, return_tensors="pt"))


def test_a_picture_is_not_changed() -> None:
    picture = np.asarray(noise(28, 28)).copy()
    before = picture.copy()
    with_picture_steps(PROCESSORS["clip"])(picture, return_tensors="pt")
    assert np.array_equal(picture, before)


def test_a_processor_of_another_backend_is_left_as_it_is() -> None:
    other = object()
    assert with_picture_steps(other) is other
