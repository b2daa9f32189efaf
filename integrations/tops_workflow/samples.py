"""The sample pictures that the shipped workflows use."""

import shutil
from pathlib import Path

from tops_workflow.formats import Prompt


def samples_folder() -> Path:
    """Return the folder that contains :data:`SAMPLES`, laid out as an input folder."""
    return Path(__file__).resolve().parent / "sample_input"


#: The samples' paths, relative to the folder.
SAMPLES = tuple(
    path.relative_to(samples_folder()).as_posix() for path in sorted(samples_folder().rglob("*.*")) if path.is_file()
)

#: The sample that is a photograph; the others are scenes of mini.
PHOTOGRAPH = "tops_cat.jpg"


def missing_samples(prompt: Prompt, input_folder: Path) -> list[str]:
    """Return the samples that a prompt names, by file or by folder, and that the input folder lacks."""
    named = {value for node in prompt.values() for value in node.get("inputs", {}).values() if isinstance(value, str)}
    return [
        name
        for name in SAMPLES
        if named & {name, *(parent.as_posix() for parent in Path(name).parents)} and not (input_folder / name).exists()
    ]


def provide_samples(prompt: Prompt, input_folder: Path) -> None:
    """Copy the samples that a prompt names and that the input folder lacks."""
    for name in missing_samples(prompt, input_folder):
        (input_folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(samples_folder() / name, input_folder / name)
