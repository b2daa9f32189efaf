"""Test that scaling in torch gives the bytes of the installed version of Pillow."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tops_engine.families.parts.pillow_resize import FILTERS, equals_pillow, pillow_resize

side = st.integers(1, 120)


def by_pillow(pixels: np.ndarray, size: tuple[int, int], resample: int) -> np.ndarray:
    return np.array(Image.fromarray(pixels).resize(size[::-1], resample))


def by_torch(pixels: np.ndarray, size: tuple[int, int], resample: int, device: str = "cpu") -> np.ndarray:
    planes = torch.from_numpy(pixels).permute(2, 0, 1).to(device)
    return pillow_resize(planes, size, resample).permute(1, 2, 0).cpu().numpy()


@settings(max_examples=60, deadline=None)
@given(st.tuples(side, side), st.tuples(side, side), st.sampled_from(sorted(FILTERS)), st.booleans())
def test_bytes_are_those_of_pillow(old: tuple[int, int], new: tuple[int, int], resample: int, extreme: bool) -> None:
    pixels = np.random.default_rng(old).integers(0, 256, (*old, 3), dtype=np.uint8)
    if extreme:  # sums below 0 and above 255
        pixels = np.where(pixels < 128, 0, 255).astype(np.uint8)
    assert np.array_equal(by_torch(pixels, new, resample), by_pillow(pixels, new, resample))


def test_a_photograph() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (960, 1280, 3), dtype=np.uint8)
    assert np.array_equal(by_torch(pixels, (504, 672), 3), by_pillow(pixels, (504, 672), 3))


def test_the_installed_pillow_is_followed() -> None:
    assert equals_pillow()


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("resample", sorted(FILTERS))
def test_bytes_of_a_gpu_are_those_of_pillow(resample: int) -> None:
    pixels = np.random.default_rng(resample).integers(0, 256, (300, 200, 3), dtype=np.uint8)
    for size in (150, 300), (90, 60), (336, 336):
        assert np.array_equal(by_torch(pixels, size, resample, "cuda"), by_pillow(pixels, size, resample))
