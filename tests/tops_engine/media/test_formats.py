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
