"""The pictures the shipped workflows open with."""

import shutil
from pathlib import Path

from tops_workflow.formats import Prompt


def samples_folder() -> Path:
    """Holds :data:`SAMPLES`, as they lie in an input folder."""
    return Path(__file__).resolve().parent / "sample_input"


#: Paths relative to the folder.
SAMPLES = tuple(
    path.relative_to(samples_folder()).as_posix() for path in sorted(samples_folder().rglob("*.*")) if path.is_file()
)


def provide_samples(prompt: Prompt, input_folder: Path) -> None:
    """Copy the samples that a prompt names and the input folder lacks."""
    named = {value for node in prompt.values() for value in node.get("inputs", {}).values() if isinstance(value, str)}
    for name in SAMPLES:
        folders = {parent.as_posix() for parent in Path(name).parents}
        if (name in named or named & folders) and not (input_folder / name).exists():
            (input_folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(samples_folder() / name, input_folder / name)
