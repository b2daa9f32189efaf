"""List the problems that keep a saved workflow from running or from being shared, with what to do about each."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from tops_engine.errors import shorten
from tops_workflow.convert import graph_to_prompt
from tops_workflow.faults import Fault
from tops_workflow.formats import Graph, InvalidWorkflow, Prompt, WorkflowFile
from tops_workflow.graphs import Node, read_graph
from tops_workflow.group_nodes import expand_groups
from tops_workflow.registry import NodeSet
from tops_workflow.runner import WorkflowRunner
from tops_workflow.samples import missing_samples, samples_folder
from tops_workflow.saved_graph import BYPASSED, MUTED, VIRTUAL
from tops_workflow.saved_values import room_for


def problems_of(workflow: WorkflowFile, runner: WorkflowRunner, nodes: NodeSet) -> list[str]:
    """Return every problem, one line each; an empty list if the workflow runs with this runner.

    Nothing is written. Samples that the workflow names count as present, because a run copies them to the input folder.
    """
    found: list[str] = []
    prompt = workflow.prompt
    if workflow.graph is not None:
        try:
            found += _graph_problems(workflow.graph, nodes)
            prompt = graph_to_prompt(workflow.graph, nodes.definitions())
        except InvalidWorkflow as error:
            return [*found, str(error)]
    assert prompt is not None
    known = {node_id: node for node_id, node in prompt.items() if node["class_type"] in nodes.classes}
    if workflow.graph is None:
        unknown = [(node_id, node["class_type"]) for node_id, node in prompt.items() if node_id not in known]
        for node_id, kind in unknown:
            name = f"node {shorten(node_id)} ({shorten(str(kind))})"
            found.append(f"{name}: unknown here; it needs ComfyUI and its pack")
    if known:
        found += _faults(known, runner)
    elif not found:
        found.append("The workflow has no node that runs.")
    return found


def _faults(prompt: Prompt, runner: WorkflowRunner) -> list[str]:
    """Check a prompt as if the samples that it names were in the input folder."""
    checked = runner.check(prompt)
    if checked.nodes and missing_samples(prompt, runner.folders.input):
        # A file that is missing both in the input folder and among the samples is a fault in both checks.
        folders = replace(runner.folders, input=samples_folder())
        with_samples = WorkflowRunner(runner.classes, folders).check(prompt).nodes
        for node_id, node in checked.nodes.items():
            others = with_samples[node_id].faults if node_id in with_samples else []
            node.faults = [fault for fault in node.faults if any(_same_place(fault, other) for other in others)]
        if not any(node.faults for node in checked.nodes.values()):
            return []
    return checked.lines()


def _same_place(first: Fault, second: Fault) -> bool:
    return (first.kind, first.extra_info.get("input_name")) == (second.kind, second.extra_info.get("input_name"))


def _graph_problems(graph: Graph, nodes: NodeSet) -> Iterator[str]:
    definitions = nodes.definitions()
    workflow = read_graph(graph, definitions)
    expand_groups(workflow, graph, definitions)
    for section in workflow.sections():
        for node in section.nodes.values():
            if node.mode in (MUTED, BYPASSED) or node.kind in workflow.subgraphs or node.kind in VIRTUAL:
                continue
            if node.is_known:
                yield from _widget_problems(node, definitions[node.kind])
            else:
                end = "; it is linked to nothing and does not run" if section.is_decoration(node) else ""
                yield f"{_name(node)}: unknown here; it needs {_pack_of(node)}{end}"


def _name(node: Node) -> str:
    return f"node {shorten(node.id)} ({shorten(node.kind)})"


def _pack_of(node: Node) -> str:
    pack = node.properties.get("cnr_id") or node.properties.get("aux_id")
    return "ComfyUI" if pack in (None, "comfy-core") else f"ComfyUI and the pack {shorten(str(pack))}"


def _widget_problems(node: Node, definition: dict[str, Any]) -> Iterator[str]:
    values = node.saved_values
    place = _name(node)
    if isinstance(values, dict):
        yield f"{place}: its widget values have no order, so defaults are used"
    elif isinstance(values, list) and len(values) > (room := room_for(definition, values)):
        yield f"{place}: {len(values)} widget values for {room} widgets; a newer version saved it, update tops-engine"
