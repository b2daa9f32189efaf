"""Everything that keeps a saved workflow from running or from being shared, in lines that say what to do."""

from collections.abc import Iterator
from typing import Any

from tops_workflow.convert import graph_to_prompt
from tops_workflow.formats import Graph, InvalidWorkflow, WorkflowFile
from tops_workflow.graphs import Node, read_graph
from tops_workflow.group_nodes import expand_groups
from tops_workflow.registry import NodeSet
from tops_workflow.runner import WorkflowRunner
from tops_workflow.samples import provide_samples
from tops_workflow.saved_graph import BYPASSED, MUTED, VIRTUAL
from tops_workflow.saved_values import room_for


def problems_of(workflow: WorkflowFile, runner: WorkflowRunner, nodes: NodeSet) -> list[str]:
    """Return every problem, one line each; an empty list if the workflow runs with this runner.

    The samples that the workflow names are copied to the runner's input folder.
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
        found += [f"node {node_id} ({kind}): unknown here; it needs ComfyUI and its pack" for node_id, kind in unknown]
    if known:
        provide_samples(known, runner.folders.input)
        found += runner.check(known).lines()
    elif not found:
        found.append("The workflow has no node that runs.")
    return found


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
                yield f"node {node.id} ({node.kind}): unknown here; it needs {_pack_of(node)}{end}"


def _pack_of(node: Node) -> str:
    pack = node.properties.get("cnr_id") or node.properties.get("aux_id")
    return "ComfyUI" if pack in (None, "comfy-core") else f"ComfyUI and the pack {pack}"


def _widget_problems(node: Node, definition: dict[str, Any]) -> Iterator[str]:
    values = node.saved_values
    place = f"node {node.id} ({node.kind})"
    if isinstance(values, dict):
        yield f"{place}: its widget values have no order, so defaults are used"
    elif isinstance(values, list) and len(values) > (room := room_for(definition, values)):
        yield f"{place}: {len(values)} widget values for {room} widgets; a newer version saved it, update tops-engine"
