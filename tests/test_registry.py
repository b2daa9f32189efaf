"""Test what ComfyUI's registry asks of the pack: metadata, pictures, and code that it refuses."""

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))

#: What travels to the registry; .comfyignore leaves out the rest.
SHIPPED = ("__init__.py", "nodes", "tops_engine", "integrations/tops_workflow")


def test_the_metadata_is_complete() -> None:
    comfy = PROJECT["tool"]["comfy"]
    assert PROJECT["project"]["urls"]["Repository"].startswith("https://github.com/")
    assert {"PublisherId", "DisplayName", "Icon", "Banner", "requires-comfyui"} <= set(comfy)
    kinds = {line.partition(" :: ")[0] for line in PROJECT["project"]["classifiers"]}
    assert {"Operating System", "Environment"} <= kinds
    assert "comfyui" not in PROJECT["project"]["name"].lower()


@pytest.mark.parametrize("name", ["Icon", "Banner"])
def test_the_pictures_have_the_registrys_shapes(name: str) -> None:
    address = urlsplit(PROJECT["tool"]["comfy"][name])
    assert address.netloc == "raw.githubusercontent.com"
    path = ROOT / address.path.partition("/main/")[2]
    width, height = Image.open(path).size
    if name == "Icon":
        assert width == height <= 400
    else:
        assert 9 * width == 21 * height


def test_nothing_that_is_shipped_executes_text_or_installs_packages() -> None:
    rules = ["check", "--isolated", "--select", "S102,S307", *SHIPPED]
    done = subprocess.run([sys.executable, "-m", "ruff", *rules], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    for folder in SHIPPED:
        for path in [ROOT / folder] if folder.endswith(".py") else (ROOT / folder).rglob("*.py"):
            code = path.read_text(encoding="utf-8")
            assert '"pip", "install"' not in code, path
            assert "import pip" not in code, path


def test_comfy_cli_validates_the_pack() -> None:
    """An external check, which CI runs: ``comfy node validate``."""
    comfy = os.environ.get("COMFY_CLI") or shutil.which("comfy")
    if comfy is None:
        pytest.skip(
            "comfy-cli is not installed (pip install comfy-cli, in an environment of its own; COMFY_CLI names it)"
        )
    done = subprocess.run([comfy, "--skip-prompt", "node", "validate"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
