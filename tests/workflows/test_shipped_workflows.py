"""Every workflow that is or was shipped opens, and runs on the embedded model."""

import json
from pathlib import Path
from typing import Any

import pytest
from tops_workflow.convert import graph_to_prompt
from tops_workflow.formats import Graph, read_workflow
from tops_workflow.host import Folders
from tops_workflow.layout import prompt_to_graph
from tops_workflow.problems import problems_of
from tops_workflow.registry import all_nodes
from tops_workflow.runner import RunReport, WorkflowRunner
from tops_workflow.samples import provide_samples

ROOT = Path(__file__).parents[2]
CURRENT = sorted((ROOT / "workflows").glob("*.json"))

# Workflows of earlier versions as they were shipped. They have to open and run for ever; nothing here is ever changed.
EVER = [*CURRENT, *sorted((Path(__file__).parent / "shipped").rglob("*.json"))]

ANSWERS: dict[str, dict[str, Any]] = {
    "ask_about_an_image": {"5": ["5"]},
    "caption_a_folder_for_training": {"4": ["6 captioned, 0 had a .txt file already, 0 failed."]},
    "compare_methods": {},
    "image_to_caption_to_prompt": {},
    "video_question": {"4": ["red"]},
    "structured_data_from_a_receipt": {"4": ['{"total": 5}'], "5": ["5"]},
    "multi_turn_chat": {"3": ["5"], "4": ["red"]},
    "calibrate_once_reuse_the_recipe": {"8": ["5"]},
}

#: Templates that were added since: one downloads its model, and one needs ComfyUI's Generate Text.
DOWNLOADS, OF_COMFYUI = "ask_about_a_photograph", "prune_generate_text"
HERE = [path for path in CURRENT if path.stem != OF_COMFYUI]
HERE_AT_ONCE = [path for path in CURRENT if path.stem not in (DOWNLOADS, OF_COMFYUI)]
RUNNING = [path for path in EVER if path.stem not in (DOWNLOADS, OF_COMFYUI)]


def graph_of(path: Path) -> Graph:
    graph = read_workflow(path).graph
    assert graph is not None
    return graph


def run(path: Path, runner: WorkflowRunner) -> RunReport:
    prompt = graph_to_prompt(graph_of(path), all_nodes().definitions())
    provide_samples(prompt, runner.folders.input)
    return runner.run(prompt)


@pytest.mark.parametrize("path", RUNNING, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_it_runs_on_the_embedded_model(path: Path, tmp_path: Path) -> None:
    runner = WorkflowRunner(all_nodes().classes, Folders.under(tmp_path))
    report = run(path, runner)
    assert report.ui
    for node_id, text in ANSWERS[path.stem].items():
        assert report.ui[node_id]["text"] == text
    # A folder that has its captions now is a reason to look at it once more, but not twice.
    run(path, runner)
    assert set(run(path, runner).cached) == set(report.results)


def test_the_template_with_a_photograph_runs_with_any_model(tmp_path: Path) -> None:
    """It names a small real model, which would be downloaded; here mini runs it."""
    prompt = graph_to_prompt(graph_of(ROOT / "workflows" / f"{DOWNLOADS}.json"), all_nodes().definitions())
    (loader,) = [node for node in prompt.values() if node["class_type"] == "TOPSLoadModel"]
    assert loader["inputs"]["model"] == "HuggingFaceTB/SmolVLM-256M-Instruct"
    loader["inputs"]["model"] = "mini"
    runner = WorkflowRunner(all_nodes().classes, Folders.under(tmp_path))
    provide_samples(prompt, runner.folders.input)
    assert runner.run(prompt).ui["5"]["text"]


@pytest.mark.parametrize("path", HERE, ids=lambda path: path.stem)
def test_check_finds_no_problem(path: Path, tmp_path: Path) -> None:
    runner = WorkflowRunner(all_nodes().classes, Folders.under(tmp_path))
    provide_samples(graph_to_prompt(graph_of(path), all_nodes().definitions()), runner.folders.input)
    assert problems_of(read_workflow(path), runner, all_nodes()) == []


@pytest.mark.parametrize(
    "path", [path for path in EVER if path.stem != OF_COMFYUI], ids=lambda path: f"{path.parent.name}-{path.stem}"
)
def test_there_and_back_keeps_every_value(path: Path) -> None:
    definitions = all_nodes().definitions()
    prompt = graph_to_prompt(graph_of(path), definitions)
    back = graph_to_prompt(prompt_to_graph(prompt, definitions), definitions)
    assert {node_id: node["inputs"] for node_id, node in back.items()} == {
        node_id: node["inputs"] for node_id, node in prompt.items()
    }


@pytest.mark.parametrize("path", CURRENT, ids=lambda path: path.stem)
def test_a_template_is_fit_to_be_sent_to_others(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    graph = json.loads(text)
    assert path.with_suffix(".jpg").is_file(), "the template browser shows a thumbnail"
    assert "/home/" not in text
    assert "/tmp" not in text
    for node in graph["nodes"]:
        if node["type"] == "MarkdownNote":
            continue
        pack = "tops-engine" if node["type"].startswith("TOPS") else "comfy-core"
        assert node["properties"]["cnr_id"] == pack, "so that a stranger's ComfyUI can offer to install it"
        assert "randomize" not in node["widgets_values"]
    assert any(node["type"] == "MarkdownNote" for node in graph["nodes"]), "says what to do"


def test_the_record_of_what_was_shipped_holds_this_version() -> None:
    shipped = Path(__file__).parent / "shipped"
    assert sorted(path.stem for path in (shipped / "0.1.0").glob("*.json")) == sorted(ANSWERS)


def test_no_other_folder_takes_the_templates_place() -> None:
    """ComfyUI serves templates from the first of these folders that is there, and lists those of all."""
    assert not [name for name in ("example_workflows", "example", "examples", "workflow") if (ROOT / name).exists()]
