"""What is wrong with a saved workflow, in lines a user can act on: before it is run, and before it is shared."""

from collections.abc import Iterator
from typing import Any

from tops_workflow.convert import BYPASSED, MUTED, NOTES, PRIMITIVE, REROUTE, graph_to_prompt
from tops_workflow.formats import Graph, InvalidWorkflow, WorkflowFile
from tops_workflow.registry import NodeSet
from tops_workflow.runner import WorkflowRunner
from tops_workflow.samples import provide_samples
from tops_workflow.widgets import inputs_of


def problems_of(workflow: WorkflowFile, runner: WorkflowRunner, nodes: NodeSet) -> list[str]:
    """Every problem, a line each; empty where the workflow runs with this runner.

    The samples it names are laid into the runner's input folder.
    """
    found: list[str] = []
    prompt = workflow.prompt
    if workflow.graph is not None:
        found += _graph_problems(workflow.graph, nodes)
        try:
            prompt = graph_to_prompt(workflow.graph, nodes.definitions())
        except InvalidWorkflow as error:
            return [*found, str(error)]
    assert prompt is not None
    known = {node_id: node for node_id, node in prompt.items() if node["class_type"] in nodes.classes}
    if workflow.graph is None:
        unknown = [(node_id, node["class_type"]) for node_id, node in prompt.items() if node_id not in known]
        found += [f"node {node_id} ({kind}): unknown here; it needs ComfyUI and its pack" for node_id, kind in unknown]
    if known:
        provide_samples(known, runner.folders.input)
        found += runner.check(known).lines()
    elif not found:
        found.append("The workflow has no node that runs.")
    return found


def _graph_problems(graph: Graph, nodes: NodeSet) -> Iterator[str]:
    inner = graph.get("definitions", {}).get("subgraphs", [])
    names = {str(entry["id"]) for entry in inner}
    for part in (graph, *inner):
        for node in part["nodes"]:
            kind = node.get("type")
            if node.get("mode", 0) in (MUTED, BYPASSED) or kind in names or kind in (*NOTES, REROUTE, PRIMITIVE):
                continue
            if kind not in nodes.classes:
                yield f"node {node.get('id')} ({kind}): unknown here; it needs {_pack_of(node)}"
            else:
                yield from _widget_problems(node, nodes)


def _pack_of(node: dict[str, Any]) -> str:
    properties = node.get("properties", {})
    pack = properties.get("cnr_id") or properties.get("aux_id")
    return "ComfyUI" if pack in (None, "comfy-core") else f"ComfyUI and the pack {pack}"


def _widget_problems(node: dict[str, Any], nodes: NodeSet) -> Iterator[str]:
    values = node.get("widgets_values")
    if isinstance(values, dict):
        yield f"node {node['id']} ({node['type']}): its widget values have no order and are ignored"
    elif values is not None:
        widgets = [entry for entry in inputs_of(nodes.definition(node["type"])) if entry.is_widget]
        room = sum(1 + len(entry.extra_slots) for entry in widgets)
        if len(values) > room:
            text = (
                f"{len(values)} widget values for {room} widgets; it was saved by a newer version, update tops-engine"
            )
            yield f"node {node['id']} ({node['type']}): {text}"
