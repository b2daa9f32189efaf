"""The .txt files beside pictures that training scripts read."""

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from tops_engine.errors import InvalidInput, shorten
from tops_engine.files import read_text_file, write_whole

#: Groups of pictures that a message names.
MOST_NAMED = 3


def text_path(picture: Path) -> Path:
    """Return the text file of a picture: its path with the ending .txt."""
    return picture.with_suffix(".txt")


def has_text(picture: Path) -> bool:
    """Return whether a file that is not empty lies at the place of the picture's text."""
    try:
        return text_path(picture).stat().st_size > 0
    except OSError:
        return False


def read_text(picture: Path) -> str | None:
    """Return the text beside a picture, or None if there is none or it is blank.

    Raises
    ------
    InvalidInput
        If it cannot be read, or is not UTF-8 (with or without a byte-order mark).
    """
    path = text_path(picture)
    try:
        return (read_text_file(path, "utf-8-sig").strip() or None) if path.is_file() else None
    except OSError as error:
        raise InvalidInput(f"The text file {shorten(path)} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise InvalidInput(
            f"The text file {shorten(path)} is not UTF-8 text; convert it to UTF-8, or delete it."
        ) from error


def write_text(picture: Path, text: str) -> None:
    """Write the text beside a picture, whole or not at all: the next run keeps what it finds.

    Raises
    ------
    InvalidInput
        If it cannot be written.
    """
    path = text_path(picture)
    try:
        write_whole(path, f"{text}\n".encode())
    except OSError as error:
        raise InvalidInput(f"The text file {shorten(path)} cannot be written: {error.strerror}.") from error


def check_own_texts(pictures: Iterable[Path], only_existing: bool = False) -> None:
    """Check that no two pictures have the same text file, as x.jpg and x.png have.

    Parameters
    ----------
    only_existing : look only at text files that exist.

    Raises
    ------
    InvalidInput
        If two have: one of them would get the other's caption.
    """
    owners: defaultdict[Path, list[str]] = defaultdict(list)
    for picture in pictures:
        owners[text_path(picture)].append(picture.name)
    shared = [
        f"{' and '.join(map(shorten, names))} in {shorten(path.parent)}"
        for path, names in owners.items()
        if len(names) > 1 and (path.exists() or not only_existing)
    ]
    if shared:
        more = f" and {len(shared) - MOST_NAMED} more" if len(shared) > MOST_NAMED else ""
        named = "; ".join(shared[:MOST_NAMED])
        raise InvalidInput(
            f"Some pictures would share one .txt file: {named}{more}. Rename or move all but one of each, or caption "
            "without .txt files."
        )
