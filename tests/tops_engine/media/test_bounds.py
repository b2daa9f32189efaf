"""Test scaling pictures to bounds of their number of pixels."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.conftest import Picture
from tops_engine.media.bounds import Bounds, scaled, scaled_size

SIDES = st.integers(1, 3000)
LIMITS = st.none() | st.integers(1, 10**6)

SIZES = [
    ((4000, 3000), None, 1_000_000, (1154, 866)),
    ((3000, 4000), None, 1_000_000, (866, 1154)),
    ((1000, 1000), None, 1_000_000, (1000, 1000)),
    ((1001, 1000), None, 1_000_000, (1000, 999)),
    ((5000, 1), None, 1000, (1000, 1)),
    ((5000, 1), None, 1, (1, 1)),
    ((40, 30), 10_000, None, (116, 87)),
    ((40, 30), 1200, 1200, (40, 30)),
    ((1, 1), 50, None, (8, 8)),
    ((7, 3), 100, 100, (15, 6)),
    ((40, 30), None, None, (40, 30)),
]


@pytest.mark.parametrize(("size", "least", "most", "expected"), SIZES)
def test_sizes(size: tuple[int, int], least: int | None, most: int | None, expected: tuple[int, int]) -> None:
    assert scaled_size(*size, least, most) == expected


@settings(deadline=None)
@given(SIDES, SIDES, LIMITS, LIMITS)
def test_the_pixels_are_within_the_bounds(width: int, height: int, least: int | None, most: int | None) -> None:
    new_width, new_height = scaled_size(width, height, least, most)
    pixels = new_width * new_height
    assert min(new_width, new_height) >= 1
    assert most is None or pixels <= most
    if most is None:
        assert pixels >= min(least or 0, 10**6)
    if (least or 0) <= width * height <= (most or width * height):
        assert (new_width, new_height) == (width, height)
    shrunk = most is not None and width * height > most
    assert not shrunk or (new_width <= width and new_height <= height)


def test_a_picture_within_the_bounds_is_not_copied(picture: Picture) -> None:
    image = picture(40, 30)
    assert scaled(image, 1000, 2000) is image
    assert scaled(image, None, 300).size == (20, 15)
    assert scaled(image, None, 300).tobytes() == image.resize((20, 15), Image.Resampling.BICUBIC).tobytes()


@pytest.mark.parametrize(
    ("least", "most", "expected"),
    [
        (None, None, (10, 20)),
        (15, None, (15, 20)),
        (None, 15, (10, 15)),
        (25, None, (25, 25)),
        (None, 5, (5, 5)),
        (1, 99, (1, 99)),
    ],
)
def test_the_bound_that_is_given_wins(least: int | None, most: int | None, expected: tuple[int, int]) -> None:
    assert Bounds(10, 20).within(least, most) == expected
