"""Test that the blueprints are recorded, and that they run as the frontend places them."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from tops_workflow.convert import graph_to_prompt
from tops_workflow.host import Folders
from tops_workflow.registry import all_nodes
from tops_workflow.runner import WorkflowRunner
from tops_workflow.samples import provide_samples

from tools.record_nodes import all_definitions
from tools.record_subgraphs import BLUEPRINTS, FOLDER, Blueprint, graph_of


@pytest.mark.parametrize("blueprint", BLUEPRINTS, ids=lambda one: one.name)
def test_the_recorded_blueprint_is_that_of_the_nodes(blueprint: Blueprint) -> None:
    """After a change of a node: python -m tools.record_subgraphs writes the blueprints anew."""
    recorded = json.loads((FOLDER / f"{blueprint.name}.json").read_text(encoding="utf-8"))
    assert recorded == graph_of(blueprint, all_definitions())
    assert len(list(FOLDER.iterdir())) == len(BLUEPRINTS)


@pytest.mark.parametrize(
    "blueprint",
    [pytest.param(one, id=one.name, marks=pytest.mark.full if "JSON" not in one.name else ()) for one in BLUEPRINTS],
)
def test_a_placed_blueprint_runs_and_its_widgets_reach_the_nodes_inside(blueprint: Blueprint, tmp_path: Path) -> None:
    graph = with_a_picture(json.loads((FOLDER / f"{blueprint.name}.json").read_text(encoding="utf-8")))
    prompt = graph_to_prompt(graph, all_nodes().definitions())
    assert {node["class_type"] for node in blueprint.prompt.values()} <= {
        node["class_type"] for node in prompt.values()
    }
    runner = WorkflowRunner(all_nodes().classes, Folders.under(tmp_path))
    provide_samples(prompt, runner.folders.input)
    (text,) = (shown["text"][0] for name, shown in runner.run(prompt).ui.items() if "text" in shown and name != "9")
    if blueprint.name == "TOPS Extract JSON":
        assert isinstance(json.loads(text)["total"], int)
    elif blueprint.name == "TOPS Caption a folder":
        assert "scene_1.jpg: " in text
    else:
        assert text


def with_a_picture(graph: dict[str, Any]) -> dict[str, Any]:
    """Return a workflow with the blueprint behind a Load Image."""
    graph = copy.deepcopy(graph)
    (node,) = graph["nodes"]
    if node["inputs"][0]["type"] == "IMAGE":
        picture = "tops_receipt.png" if "JSON" in node["title"] else "tops_photo.jpg"
        loader = {"id": 8, "type": "LoadImage", "widgets_values": [picture, "image"], "inputs": [], "mode": 0}
        loader["outputs"] = [{"name": "IMAGE", "type": "IMAGE", "links": [1]}]
        graph["nodes"].append(loader)
        graph["links"] = [[1, 8, 0, 1, 0, "IMAGE"]]
        node["inputs"][0]["link"] = 1
    return graph
