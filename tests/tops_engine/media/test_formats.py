"""Test that every format that can be opened counts as a picture in a folder, and that HEIC needs its plugin."""

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import Picture
from tops_engine.media.formats import PILLOW_FORMATS, SUFFIXES, is_picture_name, readable_formats
from tops_engine.media.images import image_file, open_frames, open_image


def test_every_ending_of_a_readable_format_counts_as_a_picture() -> None:
    readable = {"MPO", *readable_formats()}
    assert {ending for ending, format in Image.registered_extensions().items() if format in readable} == set(SUFFIXES)
    assert is_picture_name("IMG.JPG")
    assert not is_picture_name("figure.eps")


@pytest.mark.parametrize("format", PILLOW_FORMATS)
def test_every_format_is_opened_under_any_name(picture: Picture, tmp_path: Path, format: str) -> None:
    path = tmp_path / "picture.bin"
    picture(32, 32).save(path, format)
    assert open_image(path).size == (32, 32)
    assert [frame.size for frame in open_frames(path)] == [(32, 32)]


GRADIENT = Image.linear_gradient("L").resize((64, 48)).convert("RGB")


@pytest.fixture
def heic() -> bytes:
    readable_formats()  # registers the plugin
    stream = io.BytesIO()
    GRADIENT.save(stream, "HEIF")
    return stream.getvalue()


def test_a_heic_picture_is_opened_and_sent_as_png(heic: bytes, tmp_path: Path) -> None:
    path = tmp_path / "IMG_0001.HEIC"
    path.write_bytes(heic)
    difference = np.asarray(open_image(path)).astype(int) - np.asarray(GRADIENT)
    assert np.abs(difference).max() < 12
    assert image_file(path)[1] == "image/png"


def test_a_heic_picture_is_not_turned_by_its_exif_data() -> None:
    """Check that only the format's own rotation is applied, by the decoder; EXIF would rotate the picture twice."""
    readable_formats()
    exif, stream = Image.Exif(), io.BytesIO()
    exif[0x0112] = 6
    GRADIENT.save(stream, "HEIF", exif=exif)
    assert open_image(stream.getvalue()).size == (64, 48)


def red_corner(image: Image.Image) -> tuple[int, int, str]:
    """Return the size of a picture and which of its corners is red."""
    pixels = np.asarray(image)
    corners = {"top left": (2, 2), "top right": (2, -3), "bottom left": (-3, 2), "bottom right": (-3, -3)}
    (red,) = [name for name, (row, column) in corners.items() if pixels[row, column, 0] > 150]
    return *image.size, red


def marked(width: int, height: int, format: str, **exif_entries: int) -> bytes:
    """Return a blue picture whose top left quarter is red, with EXIF entries ``tag_274`` and so on."""
    image = Image.new("RGB", (width, height), "blue")
    image.paste("red", (0, 0, width // 2, height // 2))
    exif, stream = Image.Exif(), io.BytesIO()
    for name, value in exif_entries.items():
        exif[int(name.removeprefix("tag_"))] = value
    image.save(stream, format, exif=exif)
    return stream.getvalue()


#: What a picture of 128 x 64 with a red top left corner is after quarter turns against the clock.
TURNED = [(128, 64, "top left"), (64, 128, "bottom left"), (128, 64, "bottom right"), (64, 128, "top right")]


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("turns", range(4))
def test_a_heic_picture_is_turned_once_by_its_own_rotation_whatever_its_exif_says(turns: int, orientation: int) -> None:
    """Phones write both: the rotation of the format (``irot``) and the EXIF orientation."""
    readable_formats()
    content = bytearray(marked(128, 64, "HEIF", tag_274=orientation))
    place = content.index(b"pixi")  # a property that no decoder needs becomes the rotation
    content[place : place + 5] = b"irot" + bytes([turns])
    assert red_corner(open_image(bytes(content))) == TURNED[turns]
    assert red_corner(open_frames(bytes(content))[0]) == TURNED[turns]
    assert red_corner(open_image(image_file(bytes(content))[0])) == TURNED[turns]


@pytest.mark.parametrize("exif_says", [None, 6])
@pytest.mark.parametrize(("orientation", "turns"), [(1, 0), (3, 2), (6, 3), (8, 1)])
def test_an_avif_picture_is_turned_once_by_its_own_rotation_whatever_its_exif_says(
    orientation: int, turns: int, exif_says: int | None
) -> None:
    # Pillow writes the EXIF orientation (tag 274) as ``irot`` and keeps other tags, of which one becomes 274 here.
    content = marked(128, 64, "AVIF", tag_274=orientation, **({} if exif_says is None else {"tag_275": exif_says}))
    content = content.replace(b"\x01\x13\0\x03", b"\x01\x12\0\x03").replace(b"\x13\x01\x03\0", b"\x12\x01\x03\0")
    assert (b"\x01\x12\0\x03" in content or b"\x12\x01\x03\0" in content) == (exif_says is not None)
    assert red_corner(open_image(content)) == TURNED[turns]
    assert red_corner(open_frames(content)[0]) == TURNED[turns]
    assert red_corner(open_image(image_file(content)[0])) == TURNED[turns]


def test_without_the_plugin_a_heic_picture_is_refused_with_what_to_install(heic: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.heic"
    path.write_bytes(heic)
    code = (
        "import sys; sys.modules['pillow_heif'] = None\n"
        "import importlib.util; found = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *rest: None if name == 'pillow_heif' else found(name, *rest)\n"
        "from tops_engine.media.images import open_image\n"
        f"open_image({str(path)!r})"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert f"InvalidImage: {path} is a HEIC picture, which needs pillow-heif" in result.stderr
