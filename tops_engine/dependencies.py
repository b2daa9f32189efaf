"""The installed versions of the packages that the engine is built on."""

import importlib.util
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version

from packaging.requirements import Requirement
from packaging.version import Version

from tops_engine.errors import MissingDependency

#: As in pyproject.toml. A copy, since a checkout that ComfyUI loads is not installed and has no metadata.
REQUIRED = (
    "torch>=2.8",
    "numpy>=2",
    "transformers>=5.17",
    "tokenizers>=0.22",
    "accelerate>=1.1",
    "safetensors>=0.5",
    "huggingface-hub>=1.5",
    "jinja2>=3.1",
    "psutil>=5.9",
    "pydantic>=2.10",
    "pillow>=11.3",
    "packaging>=24",
    "typer>=0.16",
    "rich>=14",
)

#: What only the commands need.
COMMANDS_ONLY = ("typer>=0.16",)

#: Packages whose modules have another name.
MODULES = {"huggingface-hub": "huggingface_hub", "pillow": "PIL"}


def check_versions() -> None:
    """Check the versions of all required packages before they are imported.

    Raises
    ------
    MissingDependency
        If one is older than the engine needs; the sentence names the version found and the one wanted.
    """
    wrong = {text: installed for text in REQUIRED if (installed := unsupported_version(text)) is not None}
    if wrong:
        commands = " ".join(f"'{text}'" for text in wrong)
        raise MissingDependency(f"{_lacking(wrong)}; run: pip install {commands}.")


def lacking_for_nodes() -> str | None:
    """Return what the ComfyUI nodes need and this Python has too old or not at all; None if it has everything.

    The nodes are installed by their requirements.txt, so that even packages of which nothing is installed are looked
    for.
    """
    wrong: dict[str, str | None] = {}
    for text in REQUIRED:
        installed = unsupported_version(text)
        if text not in COMMANDS_ONLY and (installed is not None or _is_missing(text)):
            wrong[text] = installed
    return _lacking(wrong) if wrong else None


def _lacking(wrong: Mapping[str, str | None]) -> str:
    """Return what is wanted and what is installed; None is nothing."""
    names = {text: Requirement(text).name for text in wrong}
    found = [f"{names[text]} {version}" if version else f"no {names[text]}" for text, version in wrong.items()]
    return f"TOPS Engine needs {' and '.join(wrong)}, and this Python has {' and '.join(found)}"


def _is_missing(required: str) -> bool:
    name = Requirement(required).name
    try:
        return importlib.util.find_spec(MODULES.get(name, name)) is None
    except (ImportError, ValueError):  # a module that another program put in its place
        return True


def unsupported_version(required: str) -> str | None:
    """Return the installed version of a package, if it does not satisfy the requirement, such as ``torch>=2.8``.

    A package without metadata counts as supported. A pre-release counts as its release, since vendors ship such builds.
    """
    requirement = Requirement(required)
    try:
        installed = version(requirement.name)
    except PackageNotFoundError:
        return None
    return None if requirement.specifier.contains(Version(installed).base_version) else installed
