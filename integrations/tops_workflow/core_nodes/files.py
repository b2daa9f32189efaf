"""Where the core nodes' pictures lie: names such as ``clips/a.png [temp]`` inside the host's folders."""

import re
from pathlib import Path

from tops_engine.errors import InvalidInput
from tops_workflow.host import Folders, QuietHost, current_host

PICTURES = frozenset((".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif", ".apng"))

_ANNOTATED = re.compile(r"^(?P<name>.*?)(?: \[(?P<kind>input|output|temp)\])?$", re.DOTALL)


def folders() -> Folders:
    """Of the host that runs the node."""
    return (current_host.get() or QuietHost()).folders


def folder_of(kind: str) -> Path:
    """The host's folder of a kind: input, output or temp."""
    found = {"input": folders().input, "output": folders().output, "temp": folders().temp}
    if kind not in found:
        raise InvalidInput(f"There is no folder of the kind {kind!r}; use input, output or temp.")
    return found[kind]


def inside(folder: Path, *parts: str) -> Path:
    """A path below ``folder``; one that leads out of it is refused.

    Raises
    ------
    InvalidInput
        If it does, by ``..``, an absolute path, a drive or a link.
    """
    path = folder.joinpath(*parts).resolve()
    if not path.is_relative_to(folder.resolve()) or any("\0" in part for part in parts):
        raise InvalidInput(f"{'/'.join(parts)} lies outside the allowed folders.")
    return path


def annotated_path(name: str) -> Path:
    """The file that a widget's value names, in the input folder unless it says otherwise."""
    match = _ANNOTATED.match(name)
    assert match is not None
    return inside(folder_of(match["kind"] or "input"), match["name"])


def input_pictures() -> list[str]:
    """Pictures directly in the input folder, sorted: what the list of a Load Image node offers."""
    folder = folders().input
    if not folder.is_dir():
        return []
    return sorted(path.name for path in folder.iterdir() if path.suffix.lower() in PICTURES and path.is_file())


def validate_picture(name: str) -> bool | str:
    """For VALIDATE_INPUTS: True, or why the picture cannot be had."""
    try:
        return True if annotated_path(name).is_file() else f"Invalid image file: {name}"
    except InvalidInput as error:
        return str(error)


def fingerprint(name: str) -> str:
    """For IS_CHANGED: changes with the file."""
    path = annotated_path(name)
    status = path.stat()
    return f"{path}:{status.st_mtime_ns}:{status.st_size}"
