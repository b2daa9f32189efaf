"""The pictures the shipped workflows open with."""

from pathlib import Path


def samples_folder() -> Path:
    """Holds :data:`SAMPLES`, as they lie in an input folder."""
    return Path(__file__).resolve().parent / "sample_input"


#: Paths relative to the folder.
SAMPLES = tuple(
    path.relative_to(samples_folder()).as_posix() for path in sorted(samples_folder().rglob("*.*")) if path.is_file()
)
