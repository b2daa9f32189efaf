"""Read text files of any origin, write files whole or not at all, and keep given names inside a folder."""

import errno
import hashlib
import os
import stat
from pathlib import Path

from tops_engine.errors import InvalidInput, shorten

#: Bytes of the longest file name that common file systems take.
MAX_NAME = 255

#: Bytes of the largest text file that is read: a schema, a recipe, a list of questions.
MAX_TEXT_BYTES = 64 * 2**20


def read_text_file(path: Path, encoding: str = "utf-8") -> str:
    """Return the text of a file.

    Raises
    ------
    OSError
        If it cannot be read, is larger than ``MAX_TEXT_BYTES``, or is a device, which may have no end.
    UnicodeDecodeError
        If it is not text in that encoding.
    """
    with path.open("rb") as file:
        mode = os.fstat(file.fileno()).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISFIFO(mode)):
            raise OSError(errno.EINVAL, "It is not a file", str(path))
        content = file.read(MAX_TEXT_BYTES + 1)
    if len(content) > MAX_TEXT_BYTES:
        raise OSError(errno.EFBIG, f"It is larger than {MAX_TEXT_BYTES // 2**20} MiB", str(path))
    return content.decode(encoding)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that it has either its old or its new content at any time, even if the process is killed.

    The content goes to a hidden file beside it first, whose short name fits wherever the file's own name does.

    Raises
    ------
    OSError
        If it cannot be written; the old file is left as it was.
    """
    part = part_of(path)
    try:
        part.write_bytes(content)
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def part_of(path: Path) -> Path:
    """Return the hidden file beside ``path`` that its content is written to first; always the same for one path."""
    digest = hashlib.sha256(os.fsencode(path.name)).hexdigest()
    return path.with_name(f".{digest[:16]}.part")


def inside(folder: Path, *parts: str, follow_links: bool = False) -> Path:
    """Return a path below a folder.

    Parameters
    ----------
    follow_links : allow symbolic links in the path to lead out of the folder. Whoever can set a link there can read
        the files anyway; leave it off where others can choose or make names.

    Raises
    ------
    InvalidInput
        If the path leads out of the folder (by ``..``, an absolute path, a drive, or a link), or a name in it is
        longer than ``MAX_NAME`` bytes.
    """
    name = "/".join(parts)
    try:
        path = Path(os.path.normpath(folder.joinpath(*parts)))
        longest = max(len(os.fsencode(part)) for part in path.parts)
        inner = path.is_relative_to(os.path.normpath(folder))
        if not follow_links:
            path = path.resolve()
            inner = path.is_relative_to(folder.resolve())
    except (OSError, ValueError) as error:
        raise InvalidInput(f"{shorten(name)} cannot be the name of a file.") from error
    if longest > MAX_NAME:
        raise InvalidInput(f"{shorten(name)} is longer than a file name can be ({MAX_NAME} bytes).")
    if not inner or "\0" in name:
        raise InvalidInput(f"{shorten(name)} lies outside the allowed folders.")
    return path
