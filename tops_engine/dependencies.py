"""The installed versions of the packages that the engine is built on."""

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


def check_versions() -> None:
    """Check the versions of all required packages before they are imported.

    Raises
    ------
    MissingDependency
        If one is older than the engine needs; the sentence names the version found and the one wanted.
    """
    found = {text: unsupported_version(text) for text in REQUIRED}
    wrong = {text: installed for text, installed in found.items() if installed is not None}
    if wrong:
        wanted = " and ".join(wrong)
        installed = " and ".join(f"{Requirement(text).name} {installed}" for text, installed in wrong.items())
        commands = " ".join(f"'{text}'" for text in wrong)
        raise MissingDependency(
            f"TOPS Engine needs {wanted}, and this Python has {installed}; run: pip install {commands}."
        )


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
