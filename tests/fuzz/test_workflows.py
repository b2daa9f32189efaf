"""Damaged workflow files: read, converted both ways, checked and run."""

import json
from pathlib import Path
from typing import Any

import pytest
from tops_workflow.changes import set_value
from tops_workflow.convert import graph_to_prompt
from tops_workflow.formats import WorkflowFile, parse_workflow
from tops_workflow.host import Folders
from tops_workflow.layout import prompt_to_graph
from tops_workflow.problems import problems_of
from tops_workflow.registry import NodeSet, all_nodes
from tops_workflow.runner import WorkflowRunner

from tests.fuzz.mutations import Mutator, as_json
from tests.fuzz.rules import check_message, level_memory, seeds, survives
from tests.integrations.tops_workflow.random_definitions import DEFINITIONS
from tests.integrations.tops_workflow.random_graphs import RandomGraph
from tests.integrations.tops_workflow.toy_nodes import TOYS

ROOT = Path(__file__).parents[2]
NODES = NodeSet(TOYS, {name: name for name in TOYS}, dict.fromkeys(TOYS, "nodes"))


def prompts() -> list[dict[str, Any]]:
    """Prompts of nodes that take no time."""

    def node(kind: str, **inputs: Any) -> dict[str, Any]:
        return {"class_type": kind, "inputs": inputs, "_meta": {"title": kind}}

    return [
        {
            "1": node("Number", value=3, seed=0),
            "2": node("Add", a=1, b=["1", 0]),
            "3": node("Show", value=["2", 0], note="n"),
        },
        {
            "1": node("Many", count=3),
            "2": node("Collect", values=["1", 0], mark="+"),
            "4:2": node("Show", value=["2", 0]),
        },
        {"1": node("Choosy", choice="a", other="x"), "2": node("Own", value=1), "3": node("Show", value=["1", 0])},
    ]


def read(text: str | bytes, case: str) -> WorkflowFile | None:
    found = survives(case, parse_workflow, text, "flow.json")
    return found if isinstance(found, WorkflowFile) else None


def test_damaged_graphs_give_a_prompt_or_an_error() -> None:
    with level_memory("graphs"):
        for seed in seeds("graphs"):
            mutator, case = Mutator(seed), f"graph {seed}"
            text = as_json(mutator.value(RandomGraph(seed % 40).graph))
            found = read(text, case)
            if found is not None and found.graph is not None:
                prompt = survives(case, graph_to_prompt, found.graph, DEFINITIONS)
                if prompt is not None:
                    survives(case, json.dumps, prompt)
                    survives(case, prompt_to_graph, prompt, DEFINITIONS)


def test_damaged_shipped_workflows_are_checked(tmp_path: Path) -> None:
    graphs = [json.loads(path.read_text(encoding="utf-8")) for path in sorted((ROOT / "workflows").glob("*.json"))]
    runner = WorkflowRunner(all_nodes().classes, Folders.under(tmp_path))
    with level_memory("shipped workflows"):
        for seed in seeds("shipped workflows"):
            mutator, case = Mutator(seed), f"shipped workflow {seed}"
            found = read(as_json(mutator.value(graphs[seed % len(graphs)])), case)
            if found is not None:
                problems = survives(case, problems_of, found, runner, all_nodes())
                for problem in problems or []:
                    check_message(problem, case)


def test_damaged_prompts_run_or_are_refused(tmp_path: Path) -> None:
    runner = WorkflowRunner(TOYS, Folders.under(tmp_path))
    sources = prompts()
    with level_memory("prompts"):
        for seed in seeds("prompts"):
            mutator, case = Mutator(seed), f"prompt {seed}"
            found = read(as_json(mutator.value(sources[seed % len(sources)])), case)
            if found is None or found.prompt is None:
                continue
            prompt = found.prompt
            survives(case, prompt_to_graph, prompt, NODES.definitions())
            survives(case, set_value, prompt, "1.value=5", NODES.definitions())
            survives(case, runner.run, prompt, check=check_message)  # a line for each node
            runner.forget()


def test_damaged_files_are_read_or_refused() -> None:
    sources = [as_json(RandomGraph(seed).graph).encode() for seed in range(5)]
    sources += [as_json(prompt).encode() for prompt in prompts()]
    for seed in seeds("workflow files"):
        read(Mutator(seed).content(sources[seed % len(sources)]), f"file {seed}")


@pytest.mark.parametrize("depth", [10, 900, 100_000])
def test_nesting_of_any_depth(depth: int) -> None:
    case = f"depth {depth}"
    extra = '{"a":' * depth + "1" + "}" * depth
    for text in ("[" * depth + "]" * depth, f'{{"nodes": [], "links": [], "extra": {extra}}}'):
        found = read(text, case)
        if found is not None and found.graph is not None:
            survives(case, graph_to_prompt, found.graph, DEFINITIONS)
