"""Find and name the core nodes' files: names such as ``clips/a.png [temp]`` inside the host's folders."""

import re
from dataclasses import dataclass
from pathlib import Path

from tops_engine.errors import InvalidInput, quote, shorten
from tops_engine.files import inside
from tops_engine.media.folders import picture_files
from tops_workflow.host import Folders, QuietHost, current_host

VIDEOS = frozenset((".mp4", ".webm", ".mov", ".mkv", ".avi"))

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


def input_videos() -> list[str]:
    """Return the video files in the input folder: what the list of a Load Video node offers."""
    folder = folders().input
    paths = folder.iterdir() if folder.is_dir() else ()
    return sorted(path.name for path in paths if path.suffix.lower() in VIDEOS and not path.name.startswith("."))


def validate_file(name: str, kind: str) -> bool | str:
    """Return True, or why there is no such file, for VALIDATE_INPUTS; ``kind`` is image or video."""
    try:
        return True if annotated_path(name).is_file() else f"Invalid {kind} file: {shorten(name)}"
    except InvalidInput as error:
        return str(error)


def fingerprint(name: str) -> str:
    """Return a text that changes with the file, for IS_CHANGED."""
    path = annotated_path(name)
    status = path.stat()
    return f"{path}:{status.st_mtime_ns}:{status.st_size}"


@dataclass(frozen=True)
class NextFile:
    """The first free place for numbered files of a node that saves.

    Attributes
    ----------
    number : the number of the next file.
    """

    folder: Path
    stem: str
    ending: str
    number: int

    def path(self, number: int) -> Path:
        return self.folder / f"{self.stem}_{number:05}{self.ending}"


def next_file(kind: str, prefix: str, ending: str) -> NextFile:
    """Return where a node saves its next file, and create the folder.

    Parameters
    ----------
    prefix : how the files' names begin; it may hold a subfolder.
    ending : what follows the number, such as ``_.png``.

    Raises
    ------
    InvalidInput
        If the prefix names no file, or one outside the folder.
    """
    root = folder_of(kind)
    target = inside(root, prefix)
    if not target.name or target.parent == root.parent:
        raise InvalidInput("filename_prefix has to name a file inside the folder.")
    target.parent.mkdir(parents=True, exist_ok=True)
    taken = re.compile(re.escape(target.name) + r"_(\d+)" + re.escape(ending))
    numbers = [int(match[1]) for path in target.parent.iterdir() if (match := taken.fullmatch(path.name))]
    return NextFile(target.parent, target.name, ending, max(numbers, default=0) + 1)


def shown_file(path: Path, kind: str) -> dict[str, str]:
    """Return the place of a saved file as the frontend expects it."""
    subfolder = path.parent.relative_to(folder_of(kind).resolve()).as_posix()
    return {"filename": path.name, "subfolder": "" if subfolder == "." else subfolder, "type": kind}
