"""Folders of pictures that a workflow may name.

Workflows are shared, and running one may write text files beside the pictures. Therefore a workflow names folders below
ComfyUI's input and output folders, and others only where the owner of the machine allows them.
"""

import os
from collections import Counter
from contextlib import suppress
from pathlib import Path

from tops_engine.errors import InvalidInput, quote
from tops_engine.files import inside
from tops_engine.media.folders import picture_files

from .comfyui_host import host

#: Environment variable: other folders that workflows may name, separated as in PATH.
FOLDERS = "TOPS_FOLDERS"


def named_pictures(folder: str, left_out: Counter[str] | None = None) -> list[tuple[str, Path]]:
    """Return the pictures of a folder and its subfolders: the name of each in the folder, and its path.

    The folder itself may be reached by a symbolic link inside an allowed folder: whoever set one wanted its pictures to
    be found.

    Raises
    ------
    InvalidInput
        If there is no such folder, or workflows may not name it.
    """
    name = folder.strip()
    folders = host().folders
    bases = [folders.input, folders.output, *_allowed()]
    for base in bases if Path(name).is_absolute() else bases[:2]:
        with suppress(InvalidInput):
            path = inside(base, name, follow_links=True)
            if path.is_dir():
                break
    else:
        raise _unknown(name)
    return [(one, path / one) for one in picture_files(path, left_out)]


def _unknown(name: str) -> InvalidInput:
    folders = host().folders
    return InvalidInput(
        f"There is no folder {quote(name)} in {folders.input} or {folders.output}; for a folder elsewhere, give its "
        f"path and start ComfyUI with the folder in the environment variable {FOLDERS}."
    )


def _allowed() -> list[Path]:
    return [Path(entry) for entry in os.environ.get(FOLDERS, "").split(os.pathsep) if Path(entry).is_absolute()]
