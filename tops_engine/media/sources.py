"""The sources of a picture or a video: a path, a URL with data, base64, bytes or an open file."""

import base64
import binascii
import os
from pathlib import Path
from typing import BinaryIO, cast
from urllib.parse import unquote, unquote_to_bytes

from tops_engine.errors import InvalidImage, InvalidInput, InvalidVideo, reason_of, shorten
from tops_engine.media.formats import begins_like_media

#: What names or holds the file of a picture or a video.
FileSource = str | os.PathLike[str] | bytes | BinaryIO


def is_file_source(source: object) -> bool:
    """Return whether :func:`file_of` takes this."""
    return isinstance(source, str | os.PathLike | bytes) or callable(getattr(source, "read", None))


def file_of(source: FileSource, kind: str) -> tuple[str, Path | bytes]:
    """Return what to call a file in messages, and the file: an existing path, or the bytes of its content.

    A text is a path, a ``data:`` URL, or base64 of a file that begins like a picture or video. What
    exists as a file is read as a file.

    Parameters
    ----------
    kind : ``picture`` or ``video``.

    Raises
    ------
    InvalidImage, InvalidVideo
        By ``kind``: if there is no such file, a web address is given, or the data of a URL cannot be decoded.
    """
    refusal: type[InvalidInput] = InvalidVideo if kind == "video" else InvalidImage
    if isinstance(source, bytes):
        return f"The {kind}", source
    if not isinstance(source, str | os.PathLike):
        return f"The {kind}", _content(source, kind, refusal)
    text = os.fspath(source)
    scheme = text[:8].partition(":")[0].lower()
    if "://" in text[:16]:
        raise refusal(f"{shorten(text)} is a web address; download the {kind} and give its file.")
    if scheme == "data":
        return f"The {kind}", decode_data_url(text, kind, refusal)
    path = Path(text)
    if is_file(path):
        return shorten(str(path)), path
    data = decode_base64(text)
    if data is None or not begins_like_media(data):
        raise refusal(f"There is no {kind} at {shorten(str(path))}.")
    return f"The {kind}", data


def decode_data_url(url: str, kind: str, refusal: type[InvalidInput]) -> bytes:
    """Return the content of a ``data:`` URL.

    Raises
    ------
    InvalidInput
        The type ``refusal``, if there is no content or it is not valid base64.
    """
    header, comma, text = url.partition(",")
    if not comma:
        raise refusal(f"The {kind} is a data URL without data; it has the form data:image/png;base64,....")
    if not header.lower().endswith(";base64"):
        return unquote_to_bytes(text)
    data = decode_base64(unquote(text))
    if data is None:
        raise refusal(f"The {kind} is not valid base64.")
    return data


def decode_base64(text: str) -> bytes | None:
    """Return the bytes of a base64 text, in the standard or the URL-safe alphabet, padded or not; None if it is none.

    White space is left out.
    """
    compact = "".join(text.split()).rstrip("=").translate({ord("-"): "+", ord("_"): "/"})
    try:
        return base64.b64decode(compact + "=" * (-len(compact) % 4), validate=True)
    except (binascii.Error, ValueError):
        return None


def _content(stream: BinaryIO, kind: str, refusal: type[InvalidInput]) -> bytes:
    """Read an open file from its beginning, or from where it is if it cannot go back."""
    try:
        if stream.seekable():
            stream.seek(0)
        content = cast("object", stream.read())
    except (OSError, ValueError) as error:
        raise refusal(f"The {kind} cannot be read: {reason_of(error)}.") from error
    if not isinstance(content, bytes):
        raise refusal(f"The {kind} is a file that was opened as text; open it in binary mode ('rb').")
    return content


def is_file(path: Path) -> bool:
    """Like ``Path.is_file``, which raises an error for a name that is too long."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False
