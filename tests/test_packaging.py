"""The contents of the wheel, and what importing the package loads."""

import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_the_wheel_puts_nothing_else_on_anyones_path(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {
        "tops_engine",
        "langchain_tops",
        "lmms_eval_tops",
        "tops_encoder",
        "tops_studio",
        "tops_workflow",
        "vllm_tops",
    }
    assert {"tops_engine/py.typed", "langchain_tops/py.typed", "vllm_tops/py.typed"} <= set(names)
    assert "tops_engine/mini/weights/model.safetensors" in names
    assert "tops_engine/mini/weights/clip/model.safetensors" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)


@pytest.mark.parametrize(
    "module", ["tops_engine.mini", "tops_engine.settings", "tops_engine.cli", "tops_engine.remote"]
)
def test_nothing_heavy_loads_for_those_who_only_want_to_know_the_options(module: str) -> None:
    code = f"import sys, tops_engine, {module}; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_every_public_name_is_there() -> None:
    import tops_engine

    for name in tops_engine.__all__:
        assert getattr(tops_engine, name) is not None


def test_the_version_is_written_in_two_places_and_is_one() -> None:
    import tops_engine

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == tops_engine.__version__


def test_langchain_tops_is_a_name_for_this_version_and_holds_no_files(tmp_path: Path) -> None:
    folder = ROOT / "distributions" / "langchain-tops"
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("langchain_tops-*.whl")
    content = zipfile.ZipFile(wheel)
    assert all(".dist-info/" in name for name in content.namelist())
    (metadata,) = (content.read(name).decode() for name in content.namelist() if name.endswith("/METADATA"))
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f"\nVersion: {version}\n" in metadata
    required = [line for line in metadata.splitlines() if line.startswith("Requires-Dist: tops-engine")]
    assert required[0] == f"Requires-Dist: tops-engine[langchain]=={version}"
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for line in required:
        assert line.split("[")[1].split("]")[0] in extras
    assert "# langchain-tops" in metadata
