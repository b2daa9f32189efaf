"""Test weights under ComfyUI's real memory manager, without its server (skipped without COMFYUI_PATH)."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

SCRIPT = """
import gc, importlib.util, json, sys
sys.argv = ["main.py", "--cpu"]
sys.path.insert(0, {comfyui!r})
import comfy.options
comfy.options.enable_args_parsing()
import torch
from comfy import model_management as mm

path = {root!r}
spec = importlib.util.spec_from_file_location("pack", path + "/__init__.py")
pack = importlib.util.module_from_spec(spec)
sys.modules["pack"] = pack
spec.loader.exec_module(pack)
nodes = {{name: node() for name, node in pack.nodes.NODE_CLASS_MAPPINGS.items()}}
found = {{}}

def ask(model):
    return nodes["TOPSAsk"].ask(model, "Hello", 4, 0.0, 0)["result"][0]

with torch.inference_mode():
    (model,) = nodes["TOPSLoadModel"].load("mini", "auto", "auto", "none", "sdpa")
    found["lazy"] = not mm.current_loaded_models
    first = ask(model)
    found["registered"] = [loaded.model is model.patcher for loaded in mm.current_loaded_models]
    patcher = model.patcher
    found["weights_are_trainable_tensors"] = not any(p.is_inference() for p in patcher.model.net.parameters())
    ask(model)
    found["same_patcher"] = model.patcher is patcher and len(mm.current_loaded_models) == 1

    # A budget that a stock patcher would take as "load a part".
    mm.unload_all_models()
    found["unloaded"] = not mm.current_loaded_models
    patcher.partially_load(torch.device("cpu"), extra_memory=0.1)
    found["all_loaded"] = patcher.loaded_size() == patcher.model_size() > 1e6
    found["never_partly"] = patcher.partially_unload(torch.device("cpu"), 1000)

    found["works_again"] = ask(model) == first
    mm.free_memory(1e30, torch.device("cpu"))
    found["evicted"] = not mm.current_loaded_models
    found["comes_back"] = ask(model) == first and len(mm.current_loaded_models) == 1

    nodes["TOPSUnload"].unload(first, model)
    found["freed"] = not mm.current_loaded_models and not model.engine.is_loaded
    found["loads_again"] = ask(model) == first

    (other,) = nodes["TOPSLoadModel"].load("mini", "bfloat16", "auto", "none", "sdpa")
    ask(other)
    found["two"] = len(mm.current_loaded_models)
    del other
    gc.collect()
    mm.cleanup_models_gc()
    found["dropped_with_its_last_user"] = len(mm.current_loaded_models)
print(json.dumps(found))
"""


def test_weights_come_and_go_whole(tmp_path: Path) -> None:
    comfyui = os.environ.get("COMFYUI_PATH")
    if not comfyui:
        pytest.skip("COMFYUI_PATH names no ComfyUI")
    python = os.environ.get("COMFYUI_PYTHON", sys.executable)
    code = SCRIPT.format(comfyui=comfyui, root=str(ROOT))
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}
    done = subprocess.run([python, "-c", code], cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    expected = dict.fromkeys(found, True) | {
        "registered": [True],
        "never_partly": 0,
        "two": 2,
        "dropped_with_its_last_user": 1,
    }
    assert found == expected
    assert "memory leak" not in done.stderr
