"""A saved graph gives the same prompt here and in the real frontend.

Set TOPS_FRONTEND_GRAPHS to try more templates than the default; half as many random graphs are tried.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("aiohttp", reason="needs the extra studio: pip install 'tops-engine[studio]'")
pytest.importorskip("comfyui_frontend_package", reason="needs the package of the frontend")
pytest.importorskip("playwright", reason="needs playwright to drive a browser")

from tops_workflow.convert import graph_to_prompt
from tops_workflow.registry import all_nodes

from tests.integrations.tops_workflow.frontend import CHROMIUM, Frontend, open_frontend
from tests.integrations.tops_workflow.random_definitions import DEFINITIONS
from tests.integrations.tops_workflow.random_graphs import RandomGraph
from tests.integrations.tops_workflow.template_graphs import definitions_of, read_templates, templates_folder
from tests.workflows.test_shipped_workflows import HERE

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")

COUNT = int(os.environ.get("TOPS_FRONTEND_GRAPHS", "40"))
BATCH = 10
TEMPLATES = read_templates(templates_folder() or Path(), COUNT) if templates_folder() is not None else {}
TEMPLATE_DEFINITIONS = definitions_of(TEMPLATES)


@pytest.fixture(scope="module")
def frontend(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Frontend]:
    own = all_nodes().definitions()
    others = {name: one for name, one in TEMPLATE_DEFINITIONS.items() if name not in own}
    with open_frontend(tmp_path_factory.mktemp("frontend"), DEFINITIONS | others) as opened:
        yield opened


def batches(count: int) -> list[Any]:
    """Return the numbers below ``count`` in parts, of which only `make test-full` tries all."""
    parts = [range(first, min(first + BATCH, count)) for first in range(0, count, BATCH)]
    return [pytest.param(part, marks=pytest.mark.full if part[0] else ()) for part in parts]


def without_default_titles(prompt: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    """The frontend translates the names of ComfyUI's classes, which nothing but the user reads."""
    for node in prompt.values():
        definition = definitions.get(node["class_type"])
        if definition is not None and definition["python_module"] == "custom_nodes.templates":
            del node["_meta"]["title"]
    return prompt


@pytest.mark.parametrize("seeds", batches(COUNT // 2), ids=lambda seeds: f"{seeds[0]}-{seeds[-1]}")
def test_random_graphs_of_every_structure(frontend: Frontend, seeds: range) -> None:
    for seed in seeds:
        graph = RandomGraph(seed).graph
        ours = graph_to_prompt(graph, DEFINITIONS)
        assert json.loads(json.dumps(ours)) == frontend.prompt(graph), f"seed {seed}"


@pytest.mark.skipif(not TEMPLATES, reason="needs the package comfyui-workflow-templates-json")
@pytest.mark.parametrize("numbers", batches(COUNT), ids=lambda numbers: f"{numbers[0]}-{numbers[-1]}")
def test_templates_of_comfyui(frontend: Frontend, numbers: range) -> None:
    definitions = TEMPLATE_DEFINITIONS | all_nodes().definitions()
    for name in list(TEMPLATES)[numbers[0] : numbers[-1] + 1]:
        ours = without_default_titles(graph_to_prompt(TEMPLATES[name], definitions), definitions)
        theirs = without_default_titles(frontend.prompt(TEMPLATES[name]), definitions)
        assert json.loads(json.dumps(ours)) == theirs, name


def test_the_templates_of_tops(frontend: Frontend) -> None:
    for path in HERE:
        graph = json.loads(path.read_text(encoding="utf-8"))
        ours = graph_to_prompt(graph, all_nodes().definitions())
        assert json.loads(json.dumps(ours)) == frontend.prompt(graph), path.stem
