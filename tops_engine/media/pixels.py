"""Bring decoded pixels of any mode, depth and range to 8-bit RGB or RGBA, upright."""

from typing import Any

import numpy as np
from PIL import ExifTags, Image

from tops_engine.errors import InvalidImage

Array = np.ndarray[Any, np.dtype[Any]]

# The turn that makes a picture of each EXIF orientation upright.
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

#: How far floats may lie outside 0..1 and still mean 0..1. Bicubic resampling in two dimensions overshoots by up to
#: 0.28: half way between pixels its weights are -1/16, 9/16, 9/16, -1/16.
EXCESS = 0.3

_ALPHA_MODES = ("RGBA", "LA", "PA", "RGBa", "La")


def orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8; 1 if there is none or it cannot be read."""
    try:
        value = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # unreadable EXIF data does not make the picture unreadable
        return 1
    value = value[0] if isinstance(value, tuple) and value else value
    return value if isinstance(value, int) and value in TURNS else 1


def upright(image: Image.Image) -> Image.Image:
    """Turn a picture by its EXIF orientation.

    ``ImageOps.exif_transpose`` does the same and fails on photographs with any other malformed EXIF entry.
    """
    turn = TURNS.get(orientation(image))
    return image if turn is None else image.transpose(turn)


def rgb_or_rgba(image: Image.Image) -> Image.Image:
    """Return an 8-bit RGB picture, or RGBA where the picture has transparency; always a new picture.

    16-bit integers are scaled by 1/257. Floats and wider integers follow :func:`to_8_bit`.

    Raises
    ------
    InvalidImage
        If all values are infinite or not a number.
    """
    transparent = image.info.get("transparency")
    if image.mode == "F" or image.mode.startswith("I"):
        image = _deep(image, transparent)
    elif image.mode == "La":  # Pillow converts it to LA only
        image = image.convert("LA")
    if image.mode in _ALPHA_MODES or "transparency" in image.info:
        return image.copy() if image.mode == "RGBA" else image.convert("RGBA")
    return image.copy() if image.mode == "RGB" else image.convert("RGB")


def on_white(image: Image.Image) -> Image.Image:
    """Lay an RGBA picture on white; an RGB picture is returned as it is."""
    if image.mode == "RGB":
        return image
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def from_array(array: Array) -> Image.Image:
    """Return the picture of an array [H, W], [H, W, 1], [H, W, 3] or [H, W, 4] of booleans, integers or floats.

    Values follow :func:`to_8_bit`; the alpha of four channels is read by the same rule as the colours.

    Raises
    ------
    InvalidImage
        If the shape is another one, there are no pixels, or the values are no real numbers.
    """
    values = array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array
    if values.ndim not in (2, 3) or (values.ndim == 3 and values.shape[2] not in (3, 4)):
        raise InvalidImage(
            f"An array of shape {list(array.shape)} is not a picture; give [height, width] or "
            "[height, width, 1, 3 or 4]."
        )
    if values.dtype.kind not in "biuf":
        raise InvalidImage(f"An array of {array.dtype} is not a picture; give booleans, integers or floats.")
    if 0 in values.shape:
        raise InvalidImage(f"The array has no pixels (shape {list(array.shape)}).")
    return Image.fromarray(np.ascontiguousarray(to_8_bit(values)))


def to_8_bit(values: Array) -> Array:
    """Scale numbers to uint8 in 0..255 by their type and range, rounded to the nearest.

    - Booleans become 0 and 255, uint8 stays, uint16 is scaled by 1/257.
    - Floats that lie in 0..1, or at most ``EXCESS`` outside of it, are scaled by 255 and clipped.
    - Whole numbers in 0..255 stay, whole numbers in 0..65535 are scaled by 1/257, whatever their type.
    - All others say nothing about their range: they are stretched so that the largest is 255 and the smallest 0
      (or 0 stays 0 if none is negative).

    The range is that of the finite values. Not-a-number becomes 0, infinities become 0 or 255.

    Raises
    ------
    InvalidImage
        If there is no finite value.
    """
    if values.dtype == np.uint8:
        return values
    if values.dtype == np.bool_:
        return values.astype(np.uint8) * np.uint8(255)
    low, scale = _range(values)
    with np.errstate(over="ignore", invalid="ignore"):
        scaled = (values.astype(np.float64) - low) * scale + 0.5
    return np.nan_to_num(scaled, nan=0.0, posinf=255.0, neginf=0.0).clip(0, 255).astype(np.uint8)


def _range(values: Array) -> tuple[float, float]:
    """Return (low, scale): ``(values - low) * scale`` is in 0..255."""
    if values.dtype == np.uint16:
        return 0.0, 1 / 257
    finite = values if values.dtype.kind in "iu" else values[np.isfinite(values)]
    if not finite.size:
        raise InvalidImage("The picture holds no finite value; all pixels are infinite or not a number.")
    low, high = float(finite.min()), float(finite.max())
    if values.dtype.kind == "f" and low >= -EXCESS and high <= 1 + EXCESS:
        return 0.0, 255.0
    if low >= 0 and high <= 65535 and (values.dtype.kind in "iu" or bool((finite == np.floor(finite)).all())):
        return 0.0, 1.0 if high <= 255 else 1 / 257
    low = min(low, 0.0)
    return low, 255 / (high - low) if high > low else 0.0


def _deep(image: Image.Image, transparent: Any) -> Image.Image:
    """Return L, or LA where one grey value is marked as transparent, of a picture of more than 8 bits a pixel."""
    values = np.asarray(image)
    if image.mode.startswith("I;16"):
        values = values.astype(np.uint16)
    grey = Image.fromarray(to_8_bit(values))
    if not isinstance(transparent, int):
        return grey
    alpha = np.where(values == transparent, 0, 255).astype(np.uint8)
    return Image.merge("LA", (grey, Image.fromarray(alpha)))
