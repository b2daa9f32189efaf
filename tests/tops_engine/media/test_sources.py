"""Test paths, data URLs, base64 and open files: each is read, or refused with one sentence."""

import base64
import io
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.conftest import Picture
from tests.support.clips import clip
from tops_engine.errors import InvalidImage, InvalidVideo
from tops_engine.media.images import image_file, num_pixels, open_image
from tops_engine.media.videos import open_video


@pytest.fixture
def data(picture: Picture) -> bytes:
    stream = io.BytesIO()
    picture(60, 40).save(stream, "PNG")
    return stream.getvalue()


def forms(data: bytes, kind: str) -> list[Any]:
    """Return one file in every form that is not a path."""
    text = base64.b64encode(data).decode()
    lines = "\n".join(text[start : start + 76] for start in range(0, len(text), 76))
    url_safe = base64.urlsafe_b64encode(data).decode().rstrip("=")
    stream = io.BytesIO(data)
    stream.read()  # whoever filled it has left it at its end
    return [data, stream, text, lines, url_safe, f"data:{kind};base64,{text}", f"DATA:{kind};base64,{text}"]


@pytest.mark.parametrize("number", range(7))
def test_a_picture_is_opened_in_every_form(data: bytes, picture: Picture, number: int) -> None:
    source = forms(data, "image/png")[number]
    assert open_image(source).tobytes() == picture(60, 40).tobytes()
    assert num_pixels(source) == 2400
    assert image_file(source) == (data, "image/png")


@pytest.mark.parametrize("number", range(7))
def test_a_video_is_opened_in_every_form(number: int) -> None:
    assert len(open_video(forms(clip(8), "video/mp4")[number]).frames) == 8


def test_an_open_file_is_read(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a picture.png"
    path.write_bytes(data)
    with path.open("rb") as stream:
        assert open_image(stream).tobytes() == open_image(path).tobytes()


def test_what_exists_as_a_file_is_never_taken_for_base64(
    data: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny = io.BytesIO()
    Image.new("RGB", (1, 1), "red").save(tiny, "GIF")
    name = base64.urlsafe_b64encode(tiny.getvalue()).decode()
    assert open_image(name).size == (1, 1)
    Path(name).write_bytes(data)
    assert open_image(name).size == (60, 40)


@pytest.mark.parametrize("text", ["a" * 300 + ".jpg", "a" * 88_032, "/9j/" * 20_000, "x/" * 5000, "caf\0e", "\ud800"])
def test_a_text_that_is_no_file_is_refused_in_a_short_sentence(text: str) -> None:
    for opened, refusal in ((open_image, InvalidImage), (open_video, InvalidVideo)):
        with pytest.raises(refusal) as error:
            opened(text)
        assert len(str(error.value)) < 300


def test_the_reason_names_what_was_given() -> None:
    reasons: dict[Any, str] = {
        "rtsp://camera/1": "is a web address; download the picture",
        "data:image/png;base64": "is a data URL without data",
        "data:image/png;base64,%%%": "is not valid base64",
        "photos/cat": "There is no picture at photos/cat.",
        io.StringIO("x"): "open it in binary mode",
    }
    for source, reason in reasons.items():
        with pytest.raises(InvalidImage, match=re.escape(reason)):
            open_image(source)
    closed = io.BytesIO()
    closed.close()
    with pytest.raises(InvalidImage, match="cannot be read: I/O operation on closed file"):
        open_image(closed)
