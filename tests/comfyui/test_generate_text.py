"""Test TOPS Prune LLM and TOPS Load from CLIP in a real ComfyUI (skipped without COMFYUI_PATH)."""

import copy
import json
import os
from pathlib import Path
from typing import Any

import pytest
from tops_workflow.comfyui_client import ComfyUIClient
from tops_workflow.convert import graph_to_prompt
from tops_workflow.formats import Prompt, read_workflow

from tops_engine.errors import TopsError

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "comfyui" / "generate_text_pruned.json"

HAS_QWEN3_VL = Path(os.environ.get("COMFYUI_PATH", ""), "comfy", "text_encoders", "qwen3vl.py").is_file()


@pytest.fixture
def pruned(comfyui: ComfyUIClient) -> Prompt:
    """Return the example of the documentation, on a small random model."""
    definitions = comfyui.definitions()
    if "TextGenerate" not in definitions:
        pytest.skip("this version of ComfyUI has no Generate Text")
    graph = read_workflow(EXAMPLE).graph
    assert graph is not None
    prompt = graph_to_prompt(graph, definitions)
    kind = "qwen3_vl" if HAS_QWEN3_VL else "gemma4"
    prompt["1"] = {"class_type": "TestSmallClip", "inputs": {"kind": kind}}
    prompt["5"]["inputs"]["max_length"] = 6
    return prompt


def texts(comfyui: ComfyUIClient, prompt: Prompt) -> dict[str, str]:
    report = comfyui.run(prompt, None, lambda kind, data: None)
    return {node_id: ui["text"][0] for node_id, ui in report.ui.items() if "text" in ui}


def with_keep(prompt: Prompt, keep: float) -> Prompt:
    changed = copy.deepcopy(prompt)
    changed["3"]["inputs"]["keep"] = keep
    return changed


def without_pruning(prompt: Prompt) -> dict[str, Any]:
    """Return Generate Text on the CLIP itself."""
    plain = copy.deepcopy(prompt)
    plain["5"]["inputs"]["clip"] = ["1", 0]
    plain["7"]["inputs"]["source"] = ["5", 0]
    return {node_id: plain[node_id] for node_id in ("1", "2", "5", "7")}


def test_the_example_runs_and_reports_what_was_kept(comfyui: ComfyUIClient, pruned: Prompt) -> None:
    shown = texts(comfyui, pruned)
    assert "tops, keeps 22.2 % of the visual tokens" in shown["4"]
    assert "visual tokens →" in shown["6"]
    assert "22." in shown["9"]
    report = comfyui.run(pruned, None, lambda kind, data: None)
    assert report.ui["8"]["images"]


def test_keep_1_is_the_answer_of_comfyui_itself(comfyui: ComfyUIClient, pruned: Prompt) -> None:
    plain = texts(comfyui, without_pruning(pruned))["7"]
    assert texts(comfyui, with_keep(pruned, 1.0))["7"] == plain
    fewer = texts(comfyui, pruned)["7"]
    assert texts(comfyui, without_pruning(pruned))["7"] == plain != fewer


@pytest.mark.skipif(not HAS_QWEN3_VL, reason="this version of ComfyUI has no Qwen3-VL")
def test_our_nodes_run_on_the_loaded_model(comfyui: ComfyUIClient, pruned: Prompt) -> None:
    asking = {
        "1": pruned["1"],
        "2": pruned["2"],
        "10": {"class_type": "TOPSLoadFromClip", "inputs": {"clip": ["1", 0]}},
        "11": {
            "class_type": "TOPSAsk",
            "inputs": {
                "model": ["10", 0],
                "image": ["2", 0],
                "prompt": "What is shown?",
                "max_tokens": 4,
                "temperature": 0.0,
                "seed": 0,
            },
        },
        "12": {"class_type": "PreviewAny", "inputs": {"source": ["11", 4]}},
    }
    assert "model Qwen3VL of ComfyUI, method tops" in texts(comfyui, asking)["12"]


def test_a_text_encoder_passes_through_with_a_warning(comfyui: ComfyUIClient, pruned: Prompt) -> None:
    changed = copy.deepcopy(pruned)
    changed["1"]["inputs"]["kind"] = "text"
    del changed["2"], changed["5"]["inputs"]["image"]
    for node_id in ("6", "8", "9"):
        del changed[node_id]
    changed["7"]["inputs"]["source"] = ["5", 0]
    shown = texts(comfyui, changed)
    assert shown["4"].startswith("Warning: This CLIP is a text encoder without a vision tower")
    assert "7" in shown


def test_a_report_on_another_clip_is_refused(comfyui: ComfyUIClient, pruned: Prompt) -> None:
    changed = copy.deepcopy(pruned)
    changed["6"]["inputs"]["clip"] = ["1", 0]
    with pytest.raises(TopsError, match="This CLIP is not pruned"):
        comfyui.run(changed, None, lambda kind, data: None)


def test_the_example_is_fit_to_be_sent_to_others() -> None:
    text = EXAMPLE.read_text(encoding="utf-8")
    assert json.loads(text)["version"] == 0.4
    assert "/home" not in text
