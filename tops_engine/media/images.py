"""Open pictures from anywhere, safely: the only place of the product that decodes picture files.

The result is always an upright 8-bit picture in RGB (or RGBA, for masks), or one clear error.
"""

import contextlib
import io
import logging
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageSequence, UnidentifiedImageError

from tops_engine.errors import InvalidImage, reason_of
from tops_engine.media.bounds import MAX_PIXELS
from tops_engine.media.formats import PILLOW_FORMATS, WEB_FORMATS, is_heic, readable_formats
from tops_engine.media.pixels import Array, from_array, on_white, orientation, rgb_or_rgba, upright
from tops_engine.media.repair import jpeg_without_end, without_metadata
from tops_engine.media.sources import FileSource, file_of, is_file_source

ImageSource = FileSource | Array | Image.Image

#: Frames of an animation that are opened at most, and pixels of all of them together.
MAX_FRAMES, MAX_FRAME_PIXELS = 1000, 2**28

_log = logging.getLogger(__name__)


def open_image(source: ImageSource) -> Image.Image:
    """Open a picture: 8-bit RGB, turned upright by its EXIF orientation, transparency on white.

    Of an animation the first frame is taken. A file whose metadata or very last bytes are damaged is read with a
    warning in the log.

    Parameters
    ----------
    source : a path, the bytes of a file, an open binary file, base64, a data URL, a Pillow image, or a numpy array
        [H, W], [H, W, 1], [H, W, 3] or [H, W, 4]. :func:`tops_engine.media.pixels.to_8_bit` says how deep integers
        and floats are scaled.

    Raises
    ------
    InvalidImage
        Missing or unreadable file, truncated data, no pixels, or more than ``MAX_PIXELS``.
    """
    return on_white(_convert(_load(source)))


def open_frames(source: ImageSource, name: str | None = None) -> list[Image.Image]:
    """Open all frames of an animation, or the one of a picture, each upright in RGB or, with transparency, RGBA.

    Frames of another size than the first are left out, as ComfyUI does. Of the several pictures that a phone's
    photograph holds, the first is taken.

    Parameters
    ----------
    name : what to call the file in messages, in place of its path.

    Raises
    ------
    InvalidImage
        As :func:`open_image`, or if there are more than ``MAX_FRAMES`` frames or ``MAX_FRAME_PIXELS`` pixels.
    """
    file = _load(source, name)
    frames: list[Image.Image] = []
    try:
        if file.image.format in ("MPO", "HEIF") or getattr(file.image, "n_frames", 1) == 1:
            return [_convert(file)]
        for frame in ImageSequence.Iterator(file.image):
            frames.append(rgb_or_rgba(upright(frame)))
            if len(frames) > MAX_FRAMES or len(frames) * frames[0].width * frames[0].height > MAX_FRAME_PIXELS:
                raise InvalidImage(
                    f"{file.name} is too long: at most {MAX_FRAMES} frames and {MAX_FRAME_PIXELS} pixels are opened."
                )
    except InvalidImage:
        raise
    except Exception as error:  # as in _decode
        raise _damaged(file.name, error) from error
    return [frame for frame in frames if frame.size == frames[0].size]


def image_file(source: ImageSource) -> tuple[bytes, str]:
    """Return a picture as a file to send, and its media type, such as ``image/png``.

    It is the original file if any program decodes that to what :func:`open_image` makes of it: PNG, JPEG or WebP,
    upright, opaque, grey or RGB. Anything else becomes a PNG.

    Raises
    ------
    InvalidImage
        As :func:`open_image`.
    """
    file = _load(source)
    image = file.image
    plain = image.format in WEB_FORMATS and image.mode in ("RGB", "L") and "transparency" not in image.info
    if file.data is not None and plain and orientation(image) == 1:
        return file.data, Image.MIME[str(image.format)]
    stream = io.BytesIO()
    on_white(_convert(file)).save(stream, "PNG", compress_level=1)
    return stream.getvalue(), "image/png"


def png_texts(source: ImageSource) -> dict[str, str]:
    """Return the texts that a PNG carries, such as the workflow that ComfyUI writes into its pictures.

    Raises
    ------
    InvalidImage
        If it is not a readable PNG.
    """
    name, data = _content(source)
    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as picture:
            _check_size(name, picture)
            picture.load()  # text chunks may follow the pixels
            return {str(key): value for key, value in picture.info.items() if isinstance(value, str)}
    except InvalidImage:
        raise
    except Exception as error:
        raise InvalidImage(f"{name} is not a readable PNG: {reason_of(error)}.") from error


def num_pixels(source: ImageSource) -> int:
    """Return width times height by the file's header; 0 for what :func:`open_image` would refuse."""
    if isinstance(source, Image.Image):
        return source.width * source.height
    if isinstance(source, np.ndarray):
        return int(np.prod(source.shape[:2]))
    try:
        _, data = file_of(source, "picture")
        with Image.open(io.BytesIO(data) if isinstance(data, bytes) else data, formats=readable_formats()) as image:
            return image.width * image.height
    except Exception:  # the reason is given when it is opened
        return 0


@dataclass(frozen=True)
class _File:
    """A decoded picture, what to call it in messages, and the file it came in if that was read as it is."""

    name: str
    image: Image.Image
    data: bytes | None = None


def _convert(file: _File) -> Image.Image:
    try:
        return rgb_or_rgba(upright(file.image))
    except InvalidImage as error:
        raise InvalidImage(f"{file.name} cannot be used. {error}") from error
    except MemoryError as error:
        raise _too_large(file.name) from error
    except Exception as error:  # Pillow's converters raise all sorts of errors on unusual data
        raise _damaged(file.name, error) from error


def _load(source: ImageSource, called: str | None = None) -> _File:
    """Decode a source; ``called`` is its name in messages."""
    if isinstance(source, np.ndarray):
        return _File("The array", from_array(source))
    if isinstance(source, Image.Image):
        return _File("The picture", _decode("The picture", lambda: source))
    name, data = _content(source)
    name = called or name
    try:
        image = _decode(name, lambda: _open(data))
    except InvalidImage:
        repaired = _repaired(name, data)
        if repaired is None:
            raise
        return repaired
    return _File(name, image, data)


def _content(source: ImageSource) -> tuple[str, bytes]:
    """Return what to call a file, and its bytes."""
    if not is_file_source(source):
        raise InvalidImage(
            f"A picture is a path, bytes, an open file, a numpy array or a Pillow image, not {type(source).__name__}."
        )
    assert not isinstance(source, np.ndarray | Image.Image)
    name, file = file_of(source, "picture")
    if isinstance(file, bytes):
        return name, file
    try:
        return name, file.read_bytes()
    except OSError as error:
        raise InvalidImage(f"{name} cannot be read: {error.strerror}.") from error


def _decode(name: str, opened: Callable[[], Image.Image]) -> Image.Image:
    """Open and decode, with every failure of Pillow as an :class:`InvalidImage`."""
    try:
        image = opened()
        _check_size(name, image)
        image.load()
        return image
    except InvalidImage:
        raise
    except Image.DecompressionBombError as error:
        raise InvalidImage(f"{name} is too large to decode safely: {reason_of(error)}. Scale it down.") from error
    except UnidentifiedImageError as error:
        raise InvalidImage(
            f"{name} is not a picture in a known format ({', '.join(PILLOW_FORMATS[:6])} ...)."
        ) from error
    except MemoryError as error:
        raise _too_large(name) from error
    except Exception as error:  # Pillow's decoders raise all sorts of errors on damaged data
        raise _damaged(name, error) from error


def _open(data: bytes) -> Image.Image:
    """Read the header of a file. The format is found by content, never by name, and only among the readable ones."""
    return Image.open(io.BytesIO(data), formats=readable_formats())


def _repaired(name: str, data: bytes) -> _File | None:
    """Read what can be read of a file that could not be decoded as it is; None if its pixels are damaged."""
    if is_heic(data) and "HEIF" not in readable_formats():
        raise InvalidImage(f"{name} is a HEIC picture, which needs pillow-heif: pip install 'pillow-heif>=1.1'.")
    pixels = without_metadata(data)
    if pixels is not None:
        with contextlib.suppress(InvalidImage):
            image = _decode(name, lambda: _open(pixels))
            _log.warning("%s has damaged or oversized metadata, which was not read.", name)
            return _File(name, image)
    ended = jpeg_without_end(pixels or data, lambda whole: _decode(name, lambda: _open(whole)))
    if ended is None:
        return None
    _log.warning("%s lacks its last bytes; at most 1 %% of its pixels are not as they were.", name)
    return _File(name, ended)


def _check_size(name: str, image: Image.Image) -> None:
    width, height = image.size
    if width < 1 or height < 1:
        raise InvalidImage(f"{name} has no pixels ({width} x {height}).")
    if width * height > MAX_PIXELS:
        raise InvalidImage(
            f"{name} has {width} x {height} pixels, too many to decode safely; scale it below {MAX_PIXELS} pixels."
        )


def _too_large(name: str) -> InvalidImage:
    return InvalidImage(f"{name} does not fit in memory when decoded; scale it down.")


def _damaged(name: str, error: Exception) -> InvalidImage:
    return InvalidImage(f"{name} is damaged or cut off and cannot be decoded: {reason_of(error)}.")
