"""Bounds of the number of pixels of a picture, or of the tiles that it is cut into."""

import math
from typing import NamedTuple

from PIL import Image

#: Pixels of the largest picture that is decoded: 0.5 GB in RGB. Pillow refuses the same by default.
MAX_PIXELS = 178_956_970


class Bounds(NamedTuple):
    """The smallest and the largest number of pixels or tiles."""

    least: int
    most: int

    def within(self, least: int | None, most: int | None) -> "Bounds":
        """Return these bounds with others in their place; None keeps one, unless it contradicts the other."""
        if least is None:
            least = self.least if most is None else min(self.least, most)
        return Bounds(least, max(self.most, least) if most is None else most)


def scaled(image: Image.Image, least: int | None, most: int | None) -> Image.Image:
    """Scale a picture to at least ``least`` and at most ``most`` pixels; one within the bounds is returned as it is.

    Resampling is bicubic, with anti-aliasing where it shrinks.
    """
    size = scaled_size(*image.size, least, most)
    return image if size == image.size else image.resize(size, Image.Resampling.BICUBIC)


def scaled_size(width: int, height: int, least: int | None, most: int | None) -> tuple[int, int]:
    """Return width and height of :func:`scaled`.

    Both sides are multiplied by the square root of bound / pixels, and rounded down to be at most ``most`` and up to be
    at least ``least``: the shape stays, up to that rounding. Where no size is within both bounds, ``most`` holds.
    """
    size = (width, height)
    if least is not None and width * height < least:
        ratio = (least / (width * height)) ** 0.5
        size = (math.ceil(width * ratio), math.ceil(height * ratio))
    if most is None or size[0] * size[1] <= most:
        return size
    ratio = (most / (width * height)) ** 0.5
    # A side that is rounded up to 1 leaves that many pixels to the other.
    new_width = min(max(1, int(width * ratio)), most)
    return new_width, min(max(1, int(height * ratio)), most // new_width)
