"""Read files whose pixels are sound and whose metadata or last bytes are not."""

import struct
from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image

from tops_engine.errors import InvalidImage

#: PNG chunks that pixels, transparency, orientation and animation need; the others are metadata.
_PNG_CHUNKS = frozenset((b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS", b"eXIf", b"acTL", b"fcTL", b"fdAT"))

_PNG_START = b"\x89PNG\r\n\x1a\n"
_JPEG_START, _JPEG_END = b"\xff\xd8", b"\xff\xd9"

#: The largest share of pixels that the missing end of a JPEG may leave undecided.
MOST_UNDECIDED = 0.01

# Entropy-coded data that differs from the zeros with which the decoder fills a missing end: 1 MiB, more blocks than
# ``MOST_UNDECIDED`` of the largest picture has.
_OTHER_END = b"\x5a\xa7\x2c\xd3" * 2**18


def without_metadata(data: bytes) -> bytes | None:
    """Return a PNG or JPEG file without its text, colour profiles and other metadata; None if there is nothing to cut.

    The orientation in EXIF data stays.
    """
    if data.startswith(_PNG_START):
        kept = _PNG_START + b"".join(_png_chunks(data))
    elif data.startswith(_JPEG_START):
        kept = _jpeg_pixels(data)
    else:
        return None
    return kept if len(kept) < len(data) else None


def _png_chunks(data: bytes) -> Iterator[bytes]:
    """Yield each chunk that is not metadata, in order, with its length and checksum."""
    place = len(_PNG_START)
    while place + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, place)
        end = place + 12 + length
        if kind in _PNG_CHUNKS:
            yield data[place:end]
        place = end


def _jpeg_pixels(data: bytes) -> bytes:
    """Return a JPEG file without its APPn and COM segments, except EXIF data and a complete Adobe segment."""
    kept, place = [_JPEG_START], len(_JPEG_START)
    while place + 4 <= len(data) and data[place] == 0xFF:
        marker, length = data[place + 1], int.from_bytes(data[place + 2 : place + 4], "big")
        if marker == 0xDA:  # start of scan: the pixels, up to the end
            break
        segment = data[place : place + 2 + length]
        is_metadata = 0xE0 <= marker <= 0xEF or marker == 0xFE
        is_needed = segment[4:10] == b"Exif\0\0" or (marker == 0xEE and length >= 14)  # Adobe: the colour transform
        if not is_metadata or is_needed:
            kept.append(segment)
        place += 2 + length
    return b"".join([*kept, data[place:]])


def jpeg_without_end(data: bytes, decode: Callable[[bytes], Image.Image]) -> Image.Image | None:
    """Decode a JPEG file whose last bytes are missing; None if more than ``MOST_UNDECIDED`` of its pixels are lost.

    The file is decoded with two different endings: pixels that differ depend on what is missing.

    Parameters
    ----------
    decode : decodes a file, or raises :class:`InvalidImage`.
    """
    if not data.startswith(_JPEG_START):
        return None
    data = data.rstrip(b"\xff")  # half a marker
    try:
        first, second = decode(data + _JPEG_END), decode(data + _OTHER_END + _JPEG_END)
    except InvalidImage:
        return None
    differs = np.asarray(first) != np.asarray(second)
    undecided = differs.any(axis=2) if differs.ndim == 3 else differs
    return first if undecided.mean() <= MOST_UNDECIDED else None
