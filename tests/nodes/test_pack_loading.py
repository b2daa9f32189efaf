"""The pack's entry: loaded by path as ComfyUI loads it, alone or beside others, and with something missing."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]

# ComfyUI names a pack's module by its path and sets nothing else.
LOAD = """
import importlib.util, json, logging, os, sys, time, types
sys.path[:] = [entry for entry in sys.path if entry not in ("", os.getcwd())]
import torch, pydantic
{before}
stranger = sys.modules["nodes"] = types.ModuleType("nodes")
logging.basicConfig()
state = lambda: (list(sys.path), dict(os.environ), logging.getLogger().level, torch.get_default_dtype())
names, was, begun = set(sys.modules), state(), time.process_time()
path = {path!r}
name = path.replace(".", "_x_")
spec = importlib.util.spec_from_file_location(name, path + "/__init__.py")
module = importlib.util.module_from_spec(spec)
sys.modules[name] = module
spec.loader.exec_module(module)
seconds = time.process_time() - begun
result = {{"ids": sorted(module.NODE_CLASS_MAPPINGS), "seconds": seconds, "unchanged": was == state()}}
result["stranger"] = sys.modules["nodes"] is stranger
new = {{known.split(".")[0] for known in set(sys.modules) - names if not known.startswith("/")}}
result["heavy"] = sorted(new & {{"transformers", "accelerate", "bitsandbytes", "matplotlib", "av", "huggingface_hub"}})
result["bare"] = sorted(new & {{"nodes", "web", "workflows", "tests", "integrations"}})
loader = module.NODE_CLASS_MAPPINGS["TOPSAsk"]
result["inputs"] = list(loader.INPUT_TYPES()["required"])
try:
    getattr(loader(), loader.FUNCTION)(model=None, prompt="Hi", max_tokens=1, temperature=0.0, seed=0)
except Exception as error:
    result["error"] = str(error)
print(json.dumps(result))
"""


def load(path: Path, before: str = "") -> tuple[dict[str, Any], str]:
    code = LOAD.format(path=str(path), before=before)
    done = subprocess.run([sys.executable, "-c", code], cwd="/", capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


def shipped() -> list[str]:
    return sorted(json.loads((ROOT / "nodes" / "definitions.json").read_text()))


def test_loaded_by_path_it_is_quick_and_touches_nothing() -> None:
    result, _ = load(ROOT)
    assert result["ids"] == shipped()
    assert result["seconds"] < 2
    assert result["unchanged"]
    assert result["stranger"]
    assert result["heavy"] == result["bare"] == []
    assert "TOPS Load Model" in result["error"]


def test_with_a_package_missing_the_nodes_stay_and_say_what_to_do() -> None:
    result, log = load(ROOT, "sys.modules['pydantic'] = None  # as if it were not installed")
    assert result["ids"] == shipped()
    assert result["inputs"] == ["model", "prompt", "max_tokens", "temperature", "seed"]
    assert "pydantic" in result["error"]
    assert "pip install -r" in result["error"]
    assert log.count("TOPS cannot run") == 1


def test_with_an_older_transformers_the_nodes_stay_and_name_both_versions(tmp_path: Path) -> None:
    """Other packs hold transformers back at 4.57."""
    info = tmp_path / "transformers-4.57.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: transformers\nVersion: 4.57.1\n")
    result, log = load(ROOT, f"sys.path.insert(0, {str(tmp_path)!r})")
    assert result["ids"] == shipped()
    sentence = "TOPS Engine needs transformers>=5.17, and this Python has transformers 4.57.1. Install what it needs: "
    assert sentence in result["error"]
    assert log.count(sentence) == 1


def test_the_wheel_carries_the_whole_pack(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    result, _ = load(tmp_path / "site" / "tops_engine" / "_pack")
    assert result["ids"] == shipped()
    assert (tmp_path / "site" / "tops_engine" / "_pack" / "web" / "docs" / "TOPSAsk.md").is_file()
    assert (tmp_path / "site" / "tops_engine" / "_pack" / "locales" / "ja" / "nodeDefs.json").is_file()
    assert (tmp_path / "site" / "tops_workflow" / "sample_input" / "tops_photo.jpg").is_file()
