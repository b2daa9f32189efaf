"""Test damaged files: intact pixels are read with a warning, files with lost pixels are refused."""

import io
import logging
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image, PngImagePlugin

from tests.conftest import Picture
from tops_engine.errors import InvalidImage
from tops_engine.media.images import image_file, open_frames, open_image

Log = pytest.LogCaptureFixture


def encoded(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


def chunk(kind: bytes, data: bytes, checksum: int | None = None) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum or zlib.crc32(kind + data))


def oversized(kind: str) -> PngImagePlugin.PngInfo:
    info = PngImagePlugin.PngInfo()
    if kind == "zTXt":
        info.add_text("prompt", "x" * 2_000_000, zip=True)
    elif kind == "iTXt":
        info.add_itxt("prompt", "x" * 2_000_000, zip=True)
    else:
        info.add_text("prompt", "x" * 70_000_000)
    return info


@pytest.mark.parametrize("kind", ["zTXt", "iTXt", "tEXt", "iCCP"])
def test_pixels_behind_an_oversized_chunk_are_read_with_a_warning(picture: Picture, caplog: Log, kind: str) -> None:
    options: dict[str, Any] = {"icc_profile": b"x" * 2_000_000} if kind == "iCCP" else {"pnginfo": oversized(kind)}
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    data = encoded(picture(20, 10), exif=exif, **options)
    turned = picture(20, 10).transpose(Image.Transpose.ROTATE_270)
    assert open_image(data).tobytes() == turned.tobytes()
    assert "The picture has damaged or oversized metadata, which was not read." in caplog.text
    assert len(image_file(data)[0]) < 10_000


@pytest.mark.parametrize("kind", [b"tEXt", b"pHYs", b"cHRM", b"gAMA", b"iCCP", b"sRGB"])
@pytest.mark.parametrize("checksum", [None, 1])
def test_pixels_behind_a_damaged_png_chunk_are_read(picture: Picture, kind: bytes, checksum: int | None) -> None:
    data = encoded(picture(20, 10).convert("RGBA"))
    damaged = data[:33] + chunk(kind, b"a", checksum) + data[33:]
    assert open_image(damaged).tobytes() == picture(20, 10).tobytes()


@pytest.mark.parametrize(
    "segment",
    [b"\xff\xed\0\x08Photos", b"\xff\xe2\0\x0fICC_PROFILE\0\x01", b"\xff\xee\0\x08Adobe\0", b"\xff\xe0\0\x07JFIF\0"],
)
def test_pixels_behind_a_damaged_jpeg_segment_are_read(picture: Picture, segment: bytes) -> None:
    for image in (picture(40, 30), picture(40, 30).convert("CMYK")):
        data = encoded(image, "JPEG")
        assert open_image(data[:2] + segment + data[2:]).tobytes() == open_image(data).tobytes()


def test_an_animation_behind_an_oversized_chunk_keeps_its_frames(picture: Picture) -> None:
    frames = [picture(20, 10, seed) for seed in range(3)]
    data = encoded(frames[0], save_all=True, append_images=frames[1:], pnginfo=oversized("zTXt"))
    assert [frame.tobytes() for frame in open_frames(data)] == [frame.tobytes() for frame in frames]


@pytest.fixture(scope="module")
def photograph() -> Image.Image:
    skimage_data = pytest.importorskip("skimage.data")
    return Image.fromarray(skimage_data.astronaut())


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"quality": 95, "subsampling": 0}])
def test_a_jpeg_without_its_very_last_bytes_is_read_with_a_warning(
    photograph: Image.Image, caplog: Log, options: dict[str, Any]
) -> None:
    data = encoded(photograph, "JPEG", **options)
    whole = np.asarray(open_image(data)).astype(int)
    assert not caplog.records
    for missing in (1, 2, 3, 10, 20):
        read = np.asarray(open_image(data[:-missing])).astype(int)
        assert (np.abs(read - whole).max(axis=2) > 0).mean() <= 0.011
    assert caplog.text.count("lacks its last bytes") == 5
    assert all(record.levelno == logging.WARNING for record in caplog.records)


@pytest.mark.parametrize("kept", [0.95, 0.9, 0.5])
def test_a_jpeg_that_lacks_a_part_of_the_picture_is_refused(photograph: Image.Image, kept: float) -> None:
    data = encoded(photograph, "JPEG")
    with pytest.raises(InvalidImage, match="damaged or cut off"):
        open_image(data[: int(kept * len(data))])


def test_damaged_pixels_are_refused_whatever_the_metadata(picture: Picture) -> None:
    data = bytearray(encoded(picture(64, 64), pnginfo=oversized("zTXt")))
    data[-40] ^= 0xFF
    with pytest.raises(InvalidImage):
        open_image(bytes(data))
