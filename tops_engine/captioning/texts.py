"""The .txt files beside pictures that training scripts read."""

from pathlib import Path

from tops_engine.errors import InvalidInput


def read_text(picture: Path) -> str | None:
    """The text beside a picture; an empty file is none.

    Raises
    ------
    InvalidInput
        If it cannot be read as text.
    """
    path = picture.with_suffix(".txt")
    try:
        return (path.read_text(encoding="utf-8").strip() or None) if path.is_file() else None
    except OSError as error:
        raise InvalidInput(f"The text file {path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise InvalidInput(f"The text file {path} is not UTF-8 text.") from error


def write_text(picture: Path, text: str) -> None:
    """Whole or not at all: a stopped run must not leave half a text that the next one would keep.

    Raises
    ------
    InvalidInput
        If it cannot be written.
    """
    path = picture.with_suffix(".txt")
    part = picture.with_suffix(".txt.part")
    try:
        part.write_text(text + "\n", encoding="utf-8")
        part.replace(path)
    except OSError as error:
        raise InvalidInput(f"The text file {path} cannot be written: {error.strerror}.") from error
