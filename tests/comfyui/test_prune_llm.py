"""Test TOPS Prune LLM on ComfyUI's own models (skipped without COMFYUI_PATH): small random ones of its own classes."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
CHECKS = Path(__file__).with_name("core_checks.py")
ANSWERING = ("qwen3_vl", "qwen3_5", "gemma3", "gemma4", "gemma4_31b", "gemma4_unified")


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    """Return what the checks found, in ComfyUI's own Python."""
    comfyui = os.environ.get("COMFYUI_PATH")
    if not comfyui:
        pytest.skip("COMFYUI_PATH names no ComfyUI")
    python = os.environ.get("COMFYUI_PYTHON", sys.executable)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}
    command = [python, str(CHECKS), comfyui, str(ROOT), *ANSWERING, "qwen2_5_vl", "text"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(json.loads(done.stdout.splitlines()[-1]))


def checks(found: dict[str, Any], kind: str) -> dict[str, Any]:
    one = dict(found[kind])
    if "lacks" in one:
        pytest.skip(f"this version of ComfyUI lacks the model: {one['lacks']}")
    assert "error" not in one, one["error"]
    return one


@pytest.mark.parametrize("kind", ANSWERING)
def test_an_unpruned_clip_answers_as_comfyui_itself(found: dict[str, Any], kind: str) -> None:
    one = checks(found, kind)
    assert one["varied"]
    assert one["all_kept_is_the_model_itself"]


@pytest.mark.parametrize("kind", ANSWERING)
def test_the_original_and_two_prunings_live_side_by_side(found: dict[str, Any], kind: str) -> None:
    one = checks(found, kind)
    assert one["changes_the_answer"]
    assert one["original_untouched"]
    assert one["side_by_side"] == [True, True, True]
    assert one["a_second_node_takes_the_place"]


@pytest.mark.parametrize("kind", ANSWERING)
def test_the_first_stage_is_the_model_on_the_tokens_that_remain(found: dict[str, Any], kind: str) -> None:
    one = checks(found, kind)
    assert one["alpha_is_left_out"]
    if "first_stage" not in one:
        pytest.skip("this version of ComfyUI takes no positions to compare with")
    assert one["first_stage"]


@pytest.mark.parametrize("kind", [kind for kind in ANSWERING if kind != "qwen3_5"])
def test_later_stages_are_the_model_with_the_dropped_tokens_hidden(found: dict[str, Any], kind: str) -> None:
    assert checks(found, kind).get("later_stage", True)


@pytest.mark.parametrize("kind", [kind for kind in ANSWERING if kind != "gemma4_unified"])
def test_both_stages_prune(found: dict[str, Any], kind: str) -> None:
    one = checks(found, kind)
    assert one["layers"] == [0, 3, 6]
    counts = [sum(kept) for kept in one["kept"]]
    assert counts == sorted(counts, reverse=True)
    assert counts[-1] < counts[0]


@pytest.mark.parametrize("kind", ["qwen2_5_vl", "qwen3_vl"])
def test_prompts_of_image_models_are_pruned_only_if_wanted(found: dict[str, Any], kind: str) -> None:
    unpruned, fewer, as_with_a_mask, other = checks(found, kind)["encoding"]
    assert unpruned
    assert fewer
    assert as_with_a_mask
    assert other


def test_a_text_encoder_passes_through_with_a_warning(found: dict[str, Any]) -> None:
    one = checks(found, "text")
    assert one["passes_through"]
    assert one["info"].startswith("Warning: This CLIP is a text encoder without a vision tower")


def test_a_model_without_a_tower_refuses_methods_that_need_one(found: dict[str, Any]) -> None:
    assert "has no vision tower that gives vision_attention" in checks(found, "gemma4_unified")["refused"]


@pytest.mark.parametrize("kind", ANSWERING)
def test_a_prompt_without_a_picture_is_left_alone(found: dict[str, Any], kind: str) -> None:
    assert checks(found, kind)["no_picture"]


def test_a_lora_works_before_and_behind_the_node_and_for_our_own_nodes(found: dict[str, Any]) -> None:
    changes, unpruned_is_comfyui_itself, before_equals_behind, own_nodes_read_it = checks(found, "qwen3_vl")["lora"]
    assert changes
    assert unpruned_is_comfyui_itself
    assert before_equals_behind
    assert own_nodes_read_it


@pytest.mark.parametrize("kind", ["qwen3_vl", "qwen3_5"])
def test_our_nodes_on_a_clip_answer_as_on_a_checkpoint_with_its_weights(found: dict[str, Any], kind: str) -> None:
    assert checks(found, kind)["own_nodes"] == {"equal": True, "changes": True, "untouched": True}


@pytest.mark.parametrize("kind", ["qwen2_5_vl", "gemma3", "gemma4", "gemma4_31b", "gemma4_unified", "text"])
def test_other_models_are_refused_in_a_sentence_that_says_what_to_use(found: dict[str, Any], kind: str) -> None:
    sentence = checks(found, kind)["own_nodes"]["refused"]
    assert sentence.endswith(".")
    assert ("TOPS Load Model" in sentence) or kind == "text"
    assert ("use TOPS Prune LLM with Generate Text" in sentence) == kind.startswith("gemma")


def test_weights_in_eight_bits_work(found: dict[str, Any]) -> None:
    unpruned_is_comfyui_itself, pruned, own_nodes_run = checks(found, "qwen3_vl")["float8"]
    assert unpruned_is_comfyui_itself
    assert pruned
    assert own_nodes_run


def test_every_method_runs_or_is_refused_before_the_run(found: dict[str, Any]) -> None:
    results = checks(found, "qwen3_vl")["methods"]
    refused = {method: result for method, result in results.items() if result != "ran"}
    reasons = dict.fromkeys(("cdpruner", "hawk", "mmtok", "trim", "visiontrim"), "reads the question")
    reasons |= {"resize": "leaves pictures", "transprune": "watches the parts of layers"}
    assert refused.keys() == reasons.keys()
    assert all(reason in refused[method] for method, reason in reasons.items())


def test_a_limit_of_cost_is_refused_before_the_run(found: dict[str, Any]) -> None:
    assert "is a limit of cost" in checks(found, "qwen3_vl")["wrong_budget"]
