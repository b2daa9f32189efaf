"""Test the check of installed versions, with packages whose metadata name other versions."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.conftest import Tops
from tops_engine import dependencies
from tops_engine.dependencies import COMMANDS_ONLY, REQUIRED, check_versions, lacking_for_nodes, unsupported_version
from tops_engine.errors import MissingDependency

ROOT = Path(__file__).parents[2]

SENTENCE = (
    "TOPS Engine needs transformers>=5.17 and tokenizers>=0.22, and this Python has transformers 4.57.1 and tokenizers "
    "0.21.4; run: pip install 'transformers>=5.17' 'tokenizers>=0.22'."
)


def install(folder: Path, **versions: str) -> Path:
    """Write the metadata of packages into a folder that comes first on a path."""
    for name, version in versions.items():
        info = folder / f"{name}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    return folder


def test_the_bounds_are_those_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert sorted(REQUIRED) == sorted(project["dependencies"])


def test_what_is_installed_here_is_supported() -> None:
    check_versions()


def test_all_packages_that_are_too_old_are_named_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(install(tmp_path, transformers="4.57.1", tokenizers="0.21.4"))
    with pytest.raises(MissingDependency) as error:
        check_versions()
    assert str(error.value) == SENTENCE


def test_what_the_nodes_lack_is_named_with_what_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert lacking_for_nodes() is None
    monkeypatch.syspath_prepend(install(tmp_path, transformers="4.57.1", typer="0.1"))
    monkeypatch.setitem(sys.modules, "pydantic", None)  # as if it were not installed
    assert lacking_for_nodes() == (
        "TOPS Engine needs transformers>=5.17 and pydantic>=2.10, and this Python has transformers 4.57.1 and no "
        "pydantic"
    )


def test_every_requirement_of_the_nodes_is_looked_for() -> None:
    """llguidance is for TOPS Structured alone, which names it itself."""
    lines = [line.partition("#")[0].strip() for line in (ROOT / "requirements.txt").read_text().splitlines()]
    looked_for = set(REQUIRED) - set(COMMANDS_ONLY)
    assert {line for line in lines if line} - looked_for == {"llguidance>=1.4"}


@pytest.mark.parametrize(
    ("version", "supported"),
    [("5.16.9", False), ("5.17", True), ("5.17.0.dev0", True), ("5.17.0rc1", True), ("6.0a0+vendor.1", True)],
)
def test_a_pre_release_counts_as_its_release(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, supported: bool
) -> None:
    monkeypatch.syspath_prepend(install(tmp_path, transformers=version))
    assert unsupported_version("transformers>=5.17") == (None if supported else version)


def test_a_package_without_metadata_counts_as_supported() -> None:
    assert unsupported_version("no-such-package>=1") is None


def test_the_doctor_names_a_package_that_is_too_old(
    tops: Tops, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(install(tmp_path, safetensors="0.4.1"))
    lines = [" ".join(line.split()) for line in tops("doctor").out.splitlines()]
    assert "missing safetensors 0.4.1, but 0.5 or newer is needed: pip install 'safetensors>=0.5'" in lines


@pytest.mark.parametrize("command", ["models", pytest.param("ask What? --model mini", marks=pytest.mark.full)])
def test_a_command_says_it_in_one_line(tmp_path: Path, command: str) -> None:
    folder = install(tmp_path, transformers="4.57.1", tokenizers="0.21.4")
    path = os.pathsep.join([str(folder), *filter(None, sys.path)])
    result = subprocess.run(
        [sys.executable, "-m", "tops_engine.cli", *command.split()],
        env={**os.environ, "PYTHONPATH": path},
        cwd=Path(dependencies.__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr == f"Error: {SENTENCE}\n"
