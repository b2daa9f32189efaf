"""Which part of a picture an image processor shows to the vision tower, and how large it makes the picture for that."""

from collections.abc import Sequence
from typing import Any

from PIL import Image

from tops_engine.errors import InvalidImage
from tops_engine.media.bounds import MAX_PIXELS


def check_shapes(images: Sequence[Image.Image], image_processor: Any) -> None:
    """Refuse pictures that the processor would pad or scale to more than ``MAX_PIXELS`` pixels before it crops them.

    A picture of 1 x 10,000 pixels would have 112,896 * 10,000 pixels when its shorter side has 336.

    Raises
    ------
    InvalidImage
        If a picture is that narrow.
    """
    for image in images:
        shorter, longer = sorted(image.size)
        scale = 1.0
        if getattr(image_processor, "do_pad", False):
            shorter = longer
        elif image_processor.do_resize and image_processor.do_center_crop:
            scale = dict(image_processor.size).get("shortest_edge", 0) / shorter
        if shorter * longer * scale**2 > MAX_PIXELS:
            raise InvalidImage(
                f"A picture of {image.width} x {image.height} pixels is too narrow for this model; crop it."
            )


def seen_area(size: tuple[int, int], image_processor: Any) -> tuple[float, float, float, float]:
    """Return the area that a processor's resize, crop and padding leave of a picture.

    Parameters
    ----------
    size : width and height of the picture, in pixels.
    image_processor : has ``do_resize`` and ``do_center_crop`` with their sizes, and perhaps ``do_pad``.

    Returns
    -------
    Left, top, right and bottom as fractions of the picture. They are below 0 or above 1 where the processor pads.
    """
    width, height = size
    if getattr(image_processor, "do_pad", False):
        return padded_area(size)
    seen_width, seen_height = float(width), float(height)
    resized = dict(image_processor.size) if image_processor.do_resize else {}
    if image_processor.do_center_crop:
        crop = dict(image_processor.crop_size)
        scale_x = scale_y = resized.get("shortest_edge", min(width, height)) / min(width, height)
        if "height" in resized:
            scale_x, scale_y = resized["width"] / width, resized["height"] / height
        seen_width, seen_height = crop["width"] / scale_x, crop["height"] / scale_y
    margin_x, margin_y = (width - seen_width) / 2 / width, (height - seen_height) / 2 / height
    return margin_x, margin_y, 1 - margin_x, 1 - margin_y


def padded_area(size: tuple[int, int]) -> tuple[float, float, float, float]:
    """Return the square that a picture of (width, height) is padded to, as fractions of the picture.

    The picture lies in the middle of the square, so the area is below 0 and above 1 in one direction.
    """
    margin_x, margin_y = ((side - max(size)) / 2 / side for side in size)
    return margin_x, margin_y, 1 - margin_x, 1 - margin_y
