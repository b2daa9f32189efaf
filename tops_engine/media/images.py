"""Opening pictures from anywhere a user has them, safely: always an upright RGB image, or a clear error."""

import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import ExifTags, Image, UnidentifiedImageError

from tops_engine.errors import InvalidImage, InvalidInput

ImageSource = str | os.PathLike[str] | bytes | Image.Image

# Raster formats whose decoders ship with Pillow; leaves out those that call other programs (EPS) or hold documents.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "ICO", "TGA", "JPEG2000")

# How files in these formats are called: what counts as a picture in a folder.
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".avif", ".ico", ".tga", ".jp2")

# What every program that takes pictures can read.
WEB_FORMATS = ("PNG", "JPEG", "WEBP")

# What Pillow refuses by default (twice its warning limit): 0.5 GB once decoded.
MAX_PIXELS = 178_956_970

# What makes a picture of each EXIF orientation upright.
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def picture_files(folder: Path) -> Iterator[str]:
    """Paths of the pictures in a folder and its sub-folders, relative to it, sorted by their parts, one by one.

    Hidden files and folders are left out; links to folders are not followed.

    Raises
    ------
    InvalidInput
        If one of the folders cannot be read.
    """
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise InvalidInput(f"The folder {folder} cannot be read: {error.strerror}.") from error
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.is_dir(follow_symlinks=False):
            yield from (f"{entry.name}/{inside}" for inside in picture_files(folder / entry.name))
        elif entry.name.lower().endswith(SUFFIXES) and not entry.is_dir():
            yield entry.name


def open_image(source: ImageSource) -> Image.Image:
    """Open a picture from a path, the bytes of a file, or a Pillow image.

    Returns
    -------
    An RGB image, turned upright by its EXIF orientation, transparency on white, 16-bit scaled to 8.

    Raises
    ------
    InvalidImage
        Missing or unreadable file, truncated data, no pixels, or more than ``MAX_PIXELS``.
    """
    name, image, _ = _identify(source)
    return _decoded(name, image)


def image_file(source: ImageSource) -> tuple[bytes, str]:
    """A picture as a file to send, and its media type, such as ``image/png``.

    It is the file the picture came in, if that is one which any program decodes to what :func:`open_image` makes of it:
    PNG, JPEG or WebP, upright, opaque, grey or RGB. Anything else becomes a PNG.

    Raises
    ------
    InvalidImage
        As :func:`open_image`.
    """
    name, image, data = _identify(source)
    plain = image.format in WEB_FORMATS and image.mode in ("RGB", "L") and "transparency" not in image.info
    rgb = _decoded(name, image)
    if data is not None and plain and _orientation(image) not in TURNS:
        return data, Image.MIME[str(image.format)]
    stream = io.BytesIO()
    rgb.save(stream, "PNG", compress_level=1)
    return stream.getvalue(), "image/png"


def _decoded(name: str, image: Image.Image) -> Image.Image:
    width, height = image.size
    if width < 1 or height < 1:
        raise InvalidImage(f"{name} has no pixels ({width} x {height}).")
    if width * height > MAX_PIXELS:
        raise InvalidImage(
            f"{name} has {width} x {height} pixels, too many to decode safely; scale it below {MAX_PIXELS} pixels."
        )
    try:
        return _to_rgb(_upright(image))
    except MemoryError as error:
        raise InvalidImage(f"{name} does not fit in memory when decoded; scale it down.") from error
    except Exception as error:  # Pillow's decoders raise all sorts of errors on damaged data
        raise InvalidImage(f"{name} is damaged or cut off and cannot be decoded: {error}.") from error


def num_pixels(source: ImageSource) -> int:
    """Width times height by the file's header; 0 for what :func:`open_image` would refuse."""
    if isinstance(source, Image.Image):
        return source.width * source.height
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS) as image:
            return image.width * image.height
    except Exception:  # as above; why it is refused is said when it is opened
        return 0


def _identify(source: ImageSource) -> tuple[str, Image.Image, bytes | None]:
    """What to call a picture, the picture, not decoded yet, and the file it came in."""
    if isinstance(source, Image.Image):
        return "The image", source, None
    if isinstance(source, bytes):
        name, data = "The image", source
    elif isinstance(source, str | os.PathLike):
        if str(source).startswith(("http://", "https://")):
            raise InvalidImage(f"{source} is a web address; download the picture and give its file.")
        path = Path(source)
        name = str(path)
        if not path.is_file():
            raise InvalidImage(f"There is no picture at {name}.")
        try:
            data = path.read_bytes()
        except OSError as error:
            raise InvalidImage(f"{name} cannot be read: {error.strerror}.") from error
    else:
        raise InvalidImage(f"A picture is a path, bytes or a Pillow image, not {type(source).__name__}.")
    try:
        return name, Image.open(io.BytesIO(data), formats=FORMATS), data
    except Image.DecompressionBombError as error:
        raise InvalidImage(f"{name} is too large to decode safely: {error} Scale it down.") from error
    except UnidentifiedImageError as error:
        raise InvalidImage(f"{name} is not a picture in a known format ({', '.join(FORMATS[:6])} ...).") from error
    except Exception as error:  # as above
        raise InvalidImage(f"{name} is damaged or cut off and cannot be read: {error}.") from error


def _upright(image: Image.Image) -> Image.Image:
    """Turn by the EXIF orientation. ``ImageOps.exif_transpose`` fails on photographs with any other malformed entry."""
    image.load()
    orientation = _orientation(image)
    return image.transpose(TURNS[orientation]) if orientation in TURNS else image


def _orientation(image: Image.Image) -> Any:
    try:
        return image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # unreadable EXIF data does not make the picture unreadable
        return None


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "La":
        image = image.convert("LA")
    if image.mode.startswith("I") or image.mode == "F":
        image = _to_8_bit(image)
    if image.mode in ("RGBA", "LA", "PA", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return image.convert("RGB")


def _to_8_bit(image: Image.Image) -> Image.Image:
    """Scale 16-bit integers by 1/257, floats in [0, 1] by 255; Pillow's own conversion would clip both to white.

    Wider integers and larger floats do not say what white is: up to 255 they are taken as 8-bit, above as 16-bit.
    """
    values = image.convert("F")
    _, high = values.getextrema()
    assert isinstance(high, float)
    if image.mode == "F" and high <= 1.0:
        scale = 255.0
    else:
        scale = 1.0 if high <= 255 and not image.mode.startswith("I;16") else 1 / 257
    return values.point(lambda value: value * scale + 0.5).convert("L")
