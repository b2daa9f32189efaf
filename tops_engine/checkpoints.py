"""Where checkpoints come from: a folder or the hub."""

from pathlib import Path

from tops_engine.errors import ModelNotFound


def checkpoint_source(name: str) -> str:
    """Return the folder of a checkpoint if its name looks like a folder, else its hub id.

    Raises
    ------
    ModelNotFound
        If there is no such folder.
    """
    path = Path(name)
    looks_local = path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1
    if looks_local and not path.expanduser().is_dir():
        raise ModelNotFound(f"There is no folder {name!r}.")
    return str(path.expanduser()) if looks_local else name


def first_line(error: Exception) -> str:
    """Return the first line of an error's text, as a sentence."""
    return str(error).strip().partition("\n")[0].rstrip(".") + "."
