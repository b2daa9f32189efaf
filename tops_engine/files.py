"""Write files whole or not at all, and keep given names inside a folder."""

import hashlib
import os
from pathlib import Path

from tops_engine.errors import InvalidInput, shorten

#: Bytes of the longest file name that common file systems take.
MAX_NAME = 255


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
        inner = path.is_relative_to(os.path.normpath(folder))
        if not follow_links:
            path = path.resolve()
            inner = path.is_relative_to(folder.resolve())
    except (OSError, ValueError) as error:
        raise InvalidInput(f"{shorten(name)} cannot be the name of a file.") from error
    if any(len(os.fsencode(part)) > MAX_NAME for part in path.parts):
        raise InvalidInput(f"{shorten(name)} is longer than a file name can be ({MAX_NAME} bytes).")
    if not inner or "\0" in name:
        raise InvalidInput(f"{shorten(name)} lies outside the allowed folders.")
    return path
