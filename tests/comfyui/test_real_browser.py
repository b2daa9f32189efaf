"""Test a user's actions in ComfyUI's own frontend, in headless Chromium (skipped if a part is not installed)."""

import re
from pathlib import Path
from typing import Any

import pytest
from tops_workflow.convert import graph_to_prompt
from tops_workflow.formats import read_workflow
from tops_workflow.registry import all_nodes

from tests.comfyui.conftest import Server, open_template, save_picture
from tests.workflows.test_shipped_workflows import HERE

#: The texts that nodes show, by node id, from the frontend's state.
SHOWN = "id => window.app.nodeOutputs?.[id]?.text?.join('') ?? ''"
WIDGETS = "id => Object.fromEntries(window.app.graph.getNodeById(id).widgets.map(one => [one.name, one.value]))"
IMAGES = "id => window.app.nodeOutputs?.[id]?.images?.length ?? 0"


@pytest.fixture(scope="module")
def opened(page: Any, server: Server) -> Any:
    """Open the template "Ask about an image" from the template browser."""
    open_template(page, server, "Ask about an image (runs at once)")
    return page


def test_the_template_opens_whole(opened: Any) -> None:
    assert opened.evaluate("window.app.graph.nodes.every(node => !node.has_errors)")
    values = opened.evaluate(WIDGETS, 3)
    assert values["keep"] == 0.222
    assert values["method"] == "tops"
    assert opened.evaluate(WIDGETS, 4)["prompt"] == "What number is written?"
    # The first two lines name what failed and where; the lines below, who called it.
    said = [" ".join(problem.splitlines()[:2]) for problem in opened.problems]
    assert not [problem for problem in said if re.search("tops", problem, re.IGNORECASE)]


def test_run_shows_answer_and_token_map_and_keep_changes_without_loading_again(opened: Any, server: Server) -> None:
    run(opened)
    assert opened.evaluate(SHOWN, "5") == "5"
    assert opened.evaluate(IMAGES, "6") == 1
    first = opened.evaluate(SHOWN, "7")
    save_picture(opened, "comfyui_result")
    loaded = server.log.count("Loading weights")
    opened.evaluate("window.app.graph.getNodeById(3).widgets.find(widget => widget.name === 'keep').value = 0.5")
    run(opened)
    assert opened.evaluate(SHOWN, "5") == "5"
    assert opened.evaluate(SHOWN, "7") != first
    assert "50.0 %" in opened.evaluate(SHOWN, "7")
    assert server.log.count("Loading weights") == loaded


def test_a_wrong_value_is_shown_at_its_node(opened: Any) -> None:
    # A picture without a text is a question.
    opened.evaluate(
        """const node = window.app.graph.getNodeById(4)
        const link = window.app.graph.links.get(node.inputs.find(input => input.name === "image").link)
        window.unlinked = [link.origin_id, link.origin_slot, link.target_slot]
        node.disconnectInput(link.target_slot)"""
    )
    opened.evaluate("window.app.graph.getNodeById(4).widgets.find(widget => widget.name === 'prompt').value = ' '")
    opened.get_by_role("button", name="Run").first.click()
    opened.wait_for_function("window.app.graph.getNodeById(4).has_errors === true")
    opened.wait_for_timeout(500)
    save_picture(opened, "comfyui_error")
    (error,) = opened.evaluate("window.app.lastNodeErrors['4'].errors")
    assert "The prompt is empty" in error["details"]
    opened.evaluate("window.app.graph.getNodeById(4).widgets.find(widget => widget.name === 'prompt').value = 'Hello'")
    opened.evaluate(
        """const [origin, slot, target] = window.unlinked
        window.app.graph.getNodeById(origin).connect(slot, window.app.graph.getNodeById(4), target)"""
    )


@pytest.mark.parametrize("path", HERE, ids=lambda path: path.stem)
def test_the_frontend_sends_what_our_conversion_gives(opened: Any, path: Path) -> None:
    """Check that every template loads without missing nodes and its widgets have the values of the file."""
    graph = read_workflow(path).graph
    assert graph is not None
    opened.evaluate("graph => window.app.loadGraphData(graph)", graph)
    sent = opened.evaluate("window.app.graphToPrompt().then(made => made.output)")
    expected = graph_to_prompt(graph, all_nodes().definitions())
    assert {node_id: node["class_type"] for node_id, node in sent.items()} == {
        node_id: node["class_type"] for node_id, node in expected.items()
    }
    for node_id, node in expected.items():
        extra = set(sent[node_id]["inputs"]) - set(node["inputs"])
        assert {name: sent[node_id]["inputs"][name] for name in node["inputs"]} == node["inputs"]
        # Widgets that only the frontend has, such as the display mode of PreviewAny.
        assert not extra or not node["class_type"].startswith("TOPS")


def run(page: Any) -> None:
    """Press Run and wait until the last node of the template shows a new text."""
    page.evaluate("window.app.nodeOutputs = {}")
    page.get_by_role("button", name="Run").first.click()
    page.wait_for_function("['5', '6', '7'].every(id => window.app.nodeOutputs?.[id])")
    page.wait_for_timeout(1000)
