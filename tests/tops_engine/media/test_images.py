"""Test opening pictures from any source: the result is upright RGB or one clear error."""

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image

from tests.conftest import Picture
from tops_engine.errors import InvalidImage
from tops_engine.media.images import image_file, open_image

RED, GREEN, BLUE, WHITE, BLACK = (255, 0, 0), (0, 128, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0)


def encoded(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def png(width: int, height: int, rows: bytes) -> bytes:
    """Encode a 1-bit grey PNG without a library."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def refusal(source: Any) -> str:
    with pytest.raises(InvalidImage) as error:
        open_image(source)
    message = str(error.value)
    assert "\n" not in message
    assert message.endswith(".")
    return message


def pixels(image: Image.Image) -> list[tuple[int, ...]]:
    assert image.mode == "RGB"
    return [tuple(pixel) for pixel in np.asarray(image).reshape(-1, 3).tolist()]


def test_a_path_its_text_its_bytes_and_the_picture_itself_are_the_same(tmp_path: Path, picture: Picture) -> None:
    image = picture(7, 5)
    path = tmp_path / "picture.png"
    image.save(path)

    for source in (path, str(path), path.read_bytes(), image, Image.open(path)):
        assert pixels(open_image(source)) == pixels(image)


def test_the_files_name_decides_nothing(tmp_path: Path, picture: Picture) -> None:
    path = tmp_path / "picture.txt"
    path.write_bytes(encoded(picture(7, 5), "WEBP", lossless=True))

    assert pixels(open_image(path)) == pixels(picture(7, 5))


def test_a_missing_file_and_a_folder_are_refused_by_name(tmp_path: Path) -> None:
    assert refusal(tmp_path / "none.png") == f"There is no picture at {tmp_path / 'none.png'}."
    assert refusal(str(tmp_path)) == f"There is no picture at {tmp_path}."
    assert refusal("no\0name") == "There is no picture at no\0name."


def test_a_web_address_is_refused_with_what_to_do() -> None:
    assert "download the picture" in refusal("https://example.org/cat.png")


@pytest.mark.parametrize(
    "content", [b"", b"hello, I am a text\n", b"%PDF-1.4\n", b"<svg xmlns='http://www.w3.org/2000/svg'/>"]
)
def test_a_file_that_is_no_picture_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes(content)

    assert str(path) in refusal(path)
    assert "is not a picture in a known format" in refusal(content)


@pytest.mark.parametrize("source", [None, 3, ["picture.png"], {"image": b""}])
def test_a_thing_that_is_no_source_is_refused_by_its_type(source: object) -> None:
    assert type(source).__name__ in refusal(source)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
@pytest.mark.parametrize("fraction", [0.02, 0.5, 0.9])
def test_a_picture_cut_off_anywhere_is_refused(picture: Picture, format: str, fraction: float) -> None:
    whole = encoded(picture(64, 64), format)

    assert open_image(whole).size == (64, 64)
    refusal(whole[: int(len(whole) * fraction)])


def test_a_picture_with_damaged_data_is_refused(picture: Picture) -> None:
    data = bytearray(encoded(picture(64, 64)))
    data[len(data) // 2] ^= 0xFF

    assert "damaged" in refusal(bytes(data))


def test_a_few_kilobytes_that_would_decode_to_hundreds_of_megapixels_are_refused() -> None:
    side = 30_000
    bomb = png(side, side, bytes(1 + side // 8) * 64)

    assert len(bomb) < 1000
    assert f"{side}" in refusal(bomb) or f"{side * side}" in refusal(bomb)


def test_the_limit_holds_where_pillows_own_is_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)

    assert "30000 x 30000 pixels, too many to decode safely" in refusal(png(30_000, 30_000, b""))


def test_a_picture_without_pixels_is_refused() -> None:
    assert "no pixels (0 x 4)" in refusal(Image.new("RGB", (0, 4)))


def test_a_single_pixel_stays_one() -> None:
    assert pixels(open_image(encoded(Image.new("RGB", (1, 1), RED)))) == [RED]


def test_a_cmyk_jpeg_shows_its_colours() -> None:
    data = encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=100)

    assert Image.open(io.BytesIO(data)).mode == "CMYK"
    assert np.abs(np.subtract(pixels(open_image(data)), RED)).max() <= 2


@pytest.mark.parametrize("as_file", [True, False])
def test_16_bit_grey_is_scaled_not_clipped(as_file: bool) -> None:
    gradient = Image.fromarray(np.array([[0, 257, 128 * 257, 254 * 257, 65535]], dtype=np.uint16))
    assert gradient.mode == "I;16"

    opened = open_image(encoded(gradient) if as_file else gradient)

    assert pixels(opened) == [(value,) * 3 for value in (0, 1, 128, 254, 255)]


def test_dark_16_bit_grey_is_rounded_not_cut() -> None:
    dark = Image.fromarray(np.array([[0, 128, 129, 386, 2570]], dtype=np.uint16))

    assert pixels(open_image(encoded(dark))) == [(value,) * 3 for value in (0, 0, 1, 2, 10)]


def test_very_dark_16_bit_grey_stays_dark() -> None:
    assert pixels(open_image(Image.fromarray(np.array([[0, 255]], dtype=np.uint16)))) == [(0,) * 3, (1,) * 3]


def test_32_bit_integers_that_hold_8_bit_values_keep_them() -> None:
    opened = open_image(Image.fromarray(np.array([[0, 100, 255]], dtype=np.int32)))

    assert pixels(opened) == [(value,) * 3 for value in (0, 100, 255)]


def test_floats_up_to_one_are_scaled_and_larger_ones_taken_as_they_are() -> None:
    unit = Image.fromarray(np.array([[0.0, 0.2, 1.0]], dtype=np.float32))
    bytes_ = Image.fromarray(np.array([[0.0, 51.0, 255.0]], dtype=np.float32))

    assert pixels(open_image(unit)) == pixels(open_image(bytes_)) == [(0, 0, 0), (51, 51, 51), (255, 255, 255)]


def test_transparency_lies_on_white() -> None:
    half_red = np.array([[[255, 0, 0, 255], [0, 0, 0, 0], [255, 0, 0, 51]]], dtype=np.uint8)
    assert pixels(open_image(encoded(Image.fromarray(half_red)))) == [RED, WHITE, (255, 204, 204)]
    grey = np.array([[[0, 255], [0, 0]]], dtype=np.uint8)
    assert pixels(open_image(encoded(Image.fromarray(grey)))) == [BLACK, WHITE]


def test_a_transparent_colour_of_a_palette_or_of_rgb_lies_on_white() -> None:
    palette = Image.new("P", (2, 1))
    palette.putpalette([*BLUE, *GREEN])
    palette.putpixel((1, 0), 1)
    assert pixels(open_image(encoded(palette, transparency=0))) == [WHITE, GREEN]

    rgb = Image.new("RGB", (2, 1), BLUE)
    rgb.putpixel((1, 0), RED)
    assert pixels(open_image(encoded(rgb, transparency=BLUE))) == [WHITE, RED]


@pytest.mark.parametrize(
    "mode", ["1", "L", "P", "LA", "PA", "RGBA", "RGBX", "RGBa", "La", "CMYK", "YCbCr", "LAB", "HSV"]
)
def test_white_is_white_in_every_mode_of_pillow(mode: str) -> None:
    white = Image.new("RGB", (2, 2), "white")
    # Some modes are reached only through another.
    through = {"RGBa": "RGBA", "La": "LA", "LAB": None}.get(mode, "RGB")
    image = Image.new("LAB", (2, 2), (255, 128, 128)) if through is None else white.convert(through).convert(mode)

    # LAB comes out one short by the rounding of its conversion.
    assert np.subtract(WHITE, pixels(open_image(image))).max() <= (mode == "LAB")


@pytest.mark.parametrize(
    ("orientation", "corner"),
    [(1, (0, 0)), (2, (2, 0)), (3, (2, 1)), (4, (0, 1)), (5, (0, 0)), (6, (1, 0)), (7, (1, 2)), (8, (0, 2))],
)
def test_a_photograph_is_turned_upright(orientation: int, corner: tuple[int, int]) -> None:
    """Compare ``corner``, the place of the first stored pixel, with the table of the EXIF standard."""
    stored = Image.new("RGB", (3, 2), WHITE)
    stored.putpixel((0, 0), RED)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation

    opened = open_image(encoded(stored, exif=exif))

    assert opened.size == ((3, 2) if orientation < 5 else (2, 3))
    assert opened.getpixel(corner) == RED
    assert pixels(opened).count(RED) == 1


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_a_malformed_entry_beside_the_orientation_does_not_matter(format: str) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    exif[ExifTags.Base.ResolutionUnit] = 2
    unit_as_number, unit_as_text = b"\x01\x28\x00\x03", b"\x01\x28\x00\x02"
    assert unit_as_number in exif.tobytes()
    malformed = exif.tobytes().replace(unit_as_number, unit_as_text)
    data = encoded(Image.new("RGB", (3, 2), WHITE), format, exif=malformed)

    assert open_image(data).size == (2, 3)


@settings(max_examples=150)
@given(
    format=st.sampled_from(["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "ICO", "TGA", "JPEG2000"]),
    changes=st.dictionaries(st.floats(0, 1, exclude_max=True), st.integers(0, 255), min_size=1, max_size=8),
    kept=st.floats(0, 1) | st.just(1.0),
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_whatever_is_damaged_there_is_a_picture_or_one_error(
    format: str, changes: dict[float, int], kept: float
) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    image = Image.linear_gradient("L").resize((16, 12)).convert("RGB")
    data = bytearray(encoded(image, format, **({"exif": exif} if format in ("JPEG", "PNG", "WEBP", "AVIF") else {})))
    for place, value in changes.items():
        data[int(place * len(data))] = value

    try:
        opened = open_image(bytes(data[: int(kept * len(data))]))
    except InvalidImage:
        return
    assert opened.mode == "RGB"


def test_a_tiff_is_turned_upright_once() -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6

    assert open_image(encoded(Image.new("RGB", (3, 2)), "TIFF", exif=exif)).size == (2, 3)


def test_of_an_animation_the_first_frame_is_shown() -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in (RED, BLUE)]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])

    assert pixels(open_image(data)) == [RED] * 16


def test_the_callers_own_image_is_left_as_it_was() -> None:
    image = Image.new("RGBA", (2, 2), (0, 0, 0, 0))
    opened = open_image(image)
    opened.putpixel((0, 0), RED)

    assert image.mode == "RGBA"
    assert image.getpixel((0, 0)) == (0, 0, 0, 0)


def test_the_callers_own_rgb_image_is_not_shared() -> None:
    image = Image.new("RGB", (2, 2), WHITE)
    open_image(image).putpixel((0, 0), RED)

    assert image.getpixel((0, 0)) == WHITE


def test_files_that_any_program_shows_alike_are_sent_as_they_are(tmp_path: Path, picture: Picture) -> None:
    for format, media_type in (("PNG", "image/png"), ("JPEG", "image/jpeg"), ("WEBP", "image/webp")):
        for image in (picture(20, 10), picture(20, 10).convert("L")):
            data = encoded(image, format)
            assert image_file(data) == (data, media_type)
    path = tmp_path / "named.gif"
    path.write_bytes(data := encoded(picture(20, 10), "JPEG"))
    assert image_file(path) == (data, "image/jpeg")


def test_anything_else_is_sent_as_what_is_shown_here(picture: Picture) -> None:
    turned, orientation = picture(20, 10), Image.Exif()
    orientation[ExifTags.Base.Orientation] = 6
    sources: list[Any] = [
        picture(20, 10),
        Image.new("RGBA", (4, 4), (255, 0, 0, 128)),
        encoded(turned, "JPEG", exif=orientation),
        encoded(turned, "BMP"),
        encoded(turned.convert("P"), "GIF"),
        encoded(turned.convert("CMYK"), "JPEG"),
        encoded(Image.new("RGBA", (4, 4), (255, 0, 0, 128))),
        encoded(turned, transparency=(0, 0, 0)),
        encoded(Image.new("I;16", (4, 4), 40000)),
    ]
    for source in sources:
        data, media_type = image_file(source)
        assert media_type == "image/png"
        assert data != source
        with Image.open(io.BytesIO(data)) as sent:
            assert (sent.mode, sent.tobytes()) == ("RGB", open_image(source).tobytes())


def test_what_is_no_picture_is_not_sent(picture: Picture) -> None:
    for source in (b"", b"no picture", encoded(picture(20, 10))[:100], "nowhere.png"):
        with pytest.raises(InvalidImage):
            image_file(source)
