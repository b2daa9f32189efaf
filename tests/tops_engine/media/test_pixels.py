"""Test depth and range of values: white stays white for every type, and no picture becomes black silently."""

import io
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tops_engine.errors import InvalidImage
from tops_engine.media.images import open_frames, open_image
from tops_engine.media.pixels import to_8_bit

GREY = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
EXPECTED = np.round(GREY * 255).astype(int)


def shown(source: Any) -> Any:
    image = np.asarray(open_image(source)).astype(int)
    assert (image == image[..., :1]).all()
    return image[..., 0]


def tiff(array: Any) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, "TIFF")
    return stream.getvalue()


RANGES = {
    "0..1": GREY,
    "0..1.02, as bicubic resampling leaves it": GREY * 1.02,
    "-0.02..1": GREY * 1.02 - 0.02,
    "0..4": GREY * 4,
    "-1..1": GREY * 2 - 1,
    "0..255": GREY * 255,
    "0..256.3": GREY * 256.3,
    "0..80000": GREY * 80000,
    "whole numbers to 65535": np.round(GREY * 65535),
}


@pytest.mark.parametrize("name", RANGES)
@pytest.mark.parametrize("as_file", [True, False])
def test_floats_of_any_range_are_shown(name: str, as_file: bool) -> None:
    values = RANGES[name].astype(np.float32)
    assert np.abs(shown(tiff(values) if as_file else values) - EXPECTED).max() <= 5


@pytest.mark.parametrize("name", RANGES)
@pytest.mark.parametrize("hole", [np.nan, np.inf, -np.inf])
def test_one_value_that_is_not_finite_changes_no_other(name: str, hole: float) -> None:
    values = RANGES[name].astype(np.float32)
    holed = values.copy()
    holed[3, 3] = hole
    found, whole = shown(holed), shown(values)
    assert found[3, 3] == (255 if hole == np.inf else 0)
    found[3, 3] = whole[3, 3]
    assert (found == whole).all()


@pytest.mark.parametrize("pattern", ["steps", "checks"])
def test_a_float_picture_that_pillow_resized_keeps_its_contrast(pattern: str) -> None:
    """Test bicubic resampling at edges, where it overshoots most."""
    rows, columns = np.indices((32, 32)) // 4 % 2
    values = (columns if pattern == "steps" else rows ^ columns).astype(np.float32)
    resized = np.asarray(Image.fromarray(values).resize((100, 100), Image.Resampling.BICUBIC))
    assert resized.max() > 1.05
    found = shown(resized)
    assert np.abs(found - np.clip(np.round(resized * 255), 0, 255)).max() <= 1


def test_values_that_are_all_not_finite_are_refused() -> None:
    for hole in (np.nan, np.inf):
        with pytest.raises(InvalidImage, match="holds no finite value"):
            open_image(np.full((4, 4), hole))


@pytest.mark.parametrize("dtype", ["bool", "uint8", "uint16", "int32", "int64", "float16", "float32", "float64"])
@pytest.mark.parametrize("shape", ["HW", "HW1", "HW3", "HW4"])
def test_an_array_is_a_picture(dtype: str, shape: str) -> None:
    white = {"bool": 1, "uint8": 255, "uint16": 65535, "int32": 255, "int64": 255}.get(dtype, 1)
    grey = np.zeros((4, 6), dtype)
    grey[1, 2] = white
    channels = {"HW": None, "HW1": 1, "HW3": 3, "HW4": 4}[shape]
    array = grey if channels is None else np.repeat(grey[..., None], channels, axis=2)
    if channels == 4:
        array[..., 3] = white
    expected = np.zeros((4, 6), int)
    expected[1, 2] = 255
    assert (shown(array) == expected).all()
    assert (shown(array[:, ::-1]) == expected[:, ::-1]).all()


def test_transparency_of_an_array_lies_on_white() -> None:
    array = np.zeros((1, 3, 4), np.uint8)
    array[0, :, 3] = (0, 51, 255)
    assert shown(array).tolist() == [[255, 204, 0]]


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.zeros((3, 4, 4, 3)), r"An array of shape \[3, 4, 4, 3\] is not a picture"),
        (np.zeros((3, 20, 30)), r"An array of shape \[3, 20, 30\] is not a picture"),
        (np.zeros(4), "is not a picture; give"),
        (np.zeros((4, 0)), "has no pixels"),
        (np.zeros((4, 4), complex), "An array of complex128 is not a picture"),
        (np.array([["a"]]), "is not a picture"),
    ],
)
def test_other_arrays_are_refused(array: Any, reason: str) -> None:
    with pytest.raises(InvalidImage, match=reason):
        open_image(array)


@given(
    low=st.floats(-1e30, 1e30),
    high=st.floats(-1e30, 1e30),
    dtype=st.sampled_from(["float32", "float64", "int64", "int16"]),
)
def test_any_two_values_keep_their_order(low: float, high: float, dtype: str) -> None:
    if dtype.startswith("int"):
        limit = np.iinfo(dtype).max
        low, high = max(-limit, min(limit, int(low))), max(-limit, min(limit, int(high)))
    first, second = to_8_bit(np.array([low, high]).astype(dtype)).tolist()
    assert (low <= high and first <= second) or (low >= high and first >= second)


def test_a_16_bit_grey_that_stands_for_transparency_is_transparent() -> None:
    stream = io.BytesIO()
    values = np.array([[0, 1000, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(stream, "PNG", transparency=1000)
    (frame,) = open_frames(stream.getvalue())
    assert np.asarray(frame)[0].tolist() == [[0, 0, 0, 255], [4, 4, 4, 0], [255, 255, 255, 255]]


def exif(*entries: tuple[int, int, int, bytes]) -> bytes:
    """Return EXIF data with these entries: tag, type, count, value."""
    body = b"".join(
        struct.pack("<HHI", tag, kind, count) + value.ljust(4, b"\0") for tag, kind, count, value in entries
    )
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(entries)) + body + struct.pack("<I", 0)


ORIENTATION = (0x0112, 3, 1, struct.pack("<H", 6))
MALFORMED = {
    "unit as text": (0x0128, 2, 2, b"2\0"),
    "GPS as text": (0x8825, 2, 4, b"abc\0"),
    "offset of the Exif block outside": (0x8769, 4, 1, struct.pack("<I", 99999)),
    "offset of a rational outside": (0x011A, 5, 1, struct.pack("<I", 99999)),
    "count 0": (0x0132, 2, 0, b""),
    "count 2^31": (0x0132, 2, 2**31, b""),
    "unknown type": (0x0132, 99, 1, b"abcd"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_exif_entry_costs_nothing(name: str) -> None:
    stream = io.BytesIO()
    Image.new("RGB", (8, 4)).save(stream, "JPEG", exif=exif(ORIENTATION, MALFORMED[name]))
    assert open_image(stream.getvalue()).size == (4, 8)
    assert open_frames(stream.getvalue())[0].size == (4, 8)


@pytest.mark.parametrize(
    ("entry", "size"),
    [
        ((0x0112, 3, 2, struct.pack("<HH", 6, 6)), (4, 8)),  # twice: the first counts
        ((0x0112, 2, 2, b"6\0"), (8, 4)),  # as text, which readers of EXIF do not take
        ((0x0112, 3, 1, struct.pack("<H", 99)), (8, 4)),
    ],
)
def test_a_malformed_orientation_is_not_followed_unless_it_is_clear(entry: Any, size: tuple[int, int]) -> None:
    stream = io.BytesIO()
    Image.new("RGB", (8, 4)).save(stream, "JPEG", exif=exif(entry))
    assert open_image(stream.getvalue()).size == size
