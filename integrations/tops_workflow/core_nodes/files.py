"""Find the core nodes' pictures: names such as ``clips/a.png [temp]`` inside the host's folders."""

import re
from pathlib import Path

from tops_engine.errors import InvalidInput, quote, shorten
from tops_engine.files import inside
from tops_engine.media.folders import picture_files
from tops_workflow.host import Folders, QuietHost, current_host

_ANNOTATED = re.compile(r"^(?P<name>.*?)(?: \[(?P<kind>input|output|temp)\])?$", re.DOTALL)


def folders() -> Folders:
    """Return the folders of the host that runs the node."""
    return (current_host.get() or QuietHost()).folders


def folder_of(kind: str) -> Path:
    """Return the host's folder of a kind: input, output or temp."""
    found = {"input": folders().input, "output": folders().output, "temp": folders().temp}
    if kind not in found:
        raise InvalidInput(f"There is no folder of the kind {quote(kind)}; use input, output or temp.")
    return found[kind]


def annotated_path(name: str) -> Path:
    """Return the file that a widget's value names, in the input folder unless it ends in ``[output]`` or ``[temp]``."""
    match = _ANNOTATED.match(name)
    assert match is not None
    return inside(folder_of(match["kind"] or "input"), match["name"])


def input_pictures() -> list[str]:
    """Return the pictures in the input folder and its subfolders: what the list of a Load Image node offers."""
    folder = folders().input
    return list(picture_files(folder)) if folder.is_dir() else []


def validate_picture(name: str) -> bool | str:
    """Return True, or why there is no such picture, for VALIDATE_INPUTS."""
    try:
        return True if annotated_path(name).is_file() else f"Invalid image file: {shorten(name)}"
    except InvalidInput as error:
        return str(error)


def fingerprint(name: str) -> str:
    """Return a text that changes with the file, for IS_CHANGED."""
    path = annotated_path(name)
    status = path.stat()
    return f"{path}:{status.st_mtime_ns}:{status.st_size}"
