"""Test what the templates show in the frontend's App mode: the inputs that matter, and the results."""

import json
from pathlib import Path

import pytest
from tops_workflow.registry import all_nodes
from tops_workflow.widgets import node_widgets

from tests.workflows.test_shipped_workflows import CURRENT

OURS = [path for path in CURRENT if path.stem != "prune_generate_text"]


@pytest.mark.parametrize("path", OURS, ids=lambda path: path.stem)
def test_the_app_shows_widgets_and_results_that_exist(path: Path) -> None:
    graph = json.loads(path.read_text(encoding="utf-8"))
    kinds = {node["id"]: node["type"] for node in graph["nodes"] if node.get("mode", 0) == 0}
    app = graph["extra"]["linearData"]
    definitions = all_nodes().definitions()
    for node_id, name in app["inputs"]:
        widgets = node_widgets(definitions[kinds[node_id]], lambda _, default: default)
        assert name in [widget.name for widget in widgets], (node_id, name)
    assert app["inputs"]
    assert app["outputs"]
    assert all(definitions[kinds[node_id]]["output_node"] for node_id in app["outputs"])
