"""Workflow files: the graph people save (UI format), the prompt servers run (API format), PNGs that carry them."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tops_engine.errors import InvalidImage, InvalidInput
from tops_engine.media.images import png_texts

#: ``{node id: {"class_type": ..., "inputs": {name: value or [node id, output slot]}}}``
Prompt = dict[str, dict[str, Any]]

#: What the frontend saves: nodes with positions and widget values, links, groups, subgraphs.
Graph = dict[str, Any]

MAX_BYTES = 64 * 2**20


class InvalidWorkflow(InvalidInput):
    """A workflow that cannot be read, converted or run."""


@dataclass(frozen=True)
class WorkflowFile:
    """What a file holds: ``graph`` in UI format, ``prompt`` in API format; a picture may carry both."""

    graph: Graph | None
    prompt: Prompt | None


def read_workflow(path: Path) -> WorkflowFile:
    """Read a workflow: JSON in either format, or a PNG saved by ComfyUI or TOPS Studio.

    Raises
    ------
    InvalidWorkflow
        If the file is missing, too large, damaged, or holds no workflow.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InvalidWorkflow(f"{path} is larger than {MAX_BYTES // 2**20} MiB; that is no workflow.")
        if path.suffix.lower() == ".png":
            return _from_png(path)
        return parse_workflow(path.read_text(encoding="utf-8"), str(path))
    except UnicodeDecodeError as error:
        raise InvalidWorkflow(f"{path} is no workflow; give a .json file or a .png that carries one.") from error
    except OSError as error:
        raise InvalidWorkflow(f"{path} cannot be read: {error.strerror or error}.") from error


def parse_workflow(text: str, name: str) -> WorkflowFile:
    """The workflow in a JSON text; ``name`` is for error messages."""
    try:
        data = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise InvalidWorkflow(f"{name} is not valid JSON: {error}.") from error
    if is_graph(data):
        return WorkflowFile(data, None)
    if is_prompt(data):
        return WorkflowFile(None, data)
    # What ComfyUI's server was sent, or its history gives back.
    if isinstance(data, dict) and is_prompt(data.get("prompt")):
        return WorkflowFile(None, data["prompt"])
    raise InvalidWorkflow(
        f"{name} is neither a saved workflow (nodes and links) nor an API prompt (node ids with class_type and inputs)."
    )


def is_graph(data: Any) -> bool:
    """Whether this is a workflow in UI format."""
    return isinstance(data, dict) and isinstance(data.get("nodes"), list) and "links" in data


def is_prompt(data: Any) -> bool:
    """Whether this is a workflow in API format."""
    return (
        isinstance(data, dict)
        and bool(data)
        and all(isinstance(node, dict) and "class_type" in node for node in data.values())
    )


def _from_png(path: Path) -> WorkflowFile:
    try:
        chunks = png_texts(path)
    except InvalidImage as error:
        raise InvalidWorkflow(str(error)) from error
    found: dict[str, Any] = {}
    for key in ("workflow", "prompt"):
        if key in chunks:
            try:
                found[key] = json.loads(chunks[key])
            except (json.JSONDecodeError, RecursionError) as error:
                raise InvalidWorkflow(f"The {key} in {path} is not valid JSON: {error}.") from error
    graph = found.get("workflow") if is_graph(found.get("workflow")) else None
    prompt = found.get("prompt") if is_prompt(found.get("prompt")) else None
    if graph is None and prompt is None:
        raise InvalidWorkflow(f"{path} carries no workflow; pictures lose it when other programs save them again.")
    return WorkflowFile(graph, prompt)
