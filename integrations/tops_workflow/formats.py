"""Workflow files: the graph that people save (UI format), the prompt that servers run (API format), PNGs."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tops_engine.errors import InvalidImage, InvalidInput, reason_of, shorten
from tops_engine.media.images import png_texts

#: ``{node id: {"class_type": ..., "inputs": {name: value or [node id, output slot]}}}``
Prompt = dict[str, dict[str, Any]]

#: The graph as the frontend saves it: nodes with positions and widget values, links, groups, subgraphs.
Graph = dict[str, Any]

MAX_BYTES = 64 * 2**20


class InvalidWorkflow(InvalidInput):
    """A workflow that cannot be read, converted or run."""


@dataclass(frozen=True)
class WorkflowFile:
    """The content of a file: ``graph`` in UI format, ``prompt`` in API format; a picture may have both."""

    graph: Graph | None
    prompt: Prompt | None


def read_workflow(path: Path) -> WorkflowFile:
    """Read a workflow: JSON in either format, or a PNG that ComfyUI or TOPS Studio saved.

    JSON may be in UTF-8, UTF-16 or UTF-32, with or without a byte order mark.

    Raises
    ------
    InvalidWorkflow
        If the file is missing, larger than 64 MiB, damaged, or contains no workflow.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InvalidWorkflow(f"{shorten(path)} is larger than {MAX_BYTES // 2**20} MiB, too large for a workflow.")
        if path.suffix.lower() == ".png":
            return _from_png(path)
        return parse_workflow(path.read_bytes(), str(path))
    except OSError as error:
        raise InvalidWorkflow(f"{shorten(path)} cannot be read: {error.strerror or error}.") from error


def parse_workflow(text: str | bytes, name: str) -> WorkflowFile:
    """Return the workflow in a JSON text; ``name`` is for error messages.

    Raises
    ------
    InvalidWorkflow
        If the text is not JSON or contains no workflow.
    """
    data = _read_json(text, name)
    if is_graph(data):
        return WorkflowFile(data, None)
    if is_prompt(data):
        return WorkflowFile(None, data)
    # The body of a request to ComfyUI's server, or an entry of its history.
    if isinstance(data, dict) and is_prompt(data.get("prompt")):
        return WorkflowFile(None, data["prompt"])
    raise InvalidWorkflow(
        f"{name} is neither a saved workflow (nodes and links) nor an API prompt (node ids with class_type and inputs)."
    )


def _read_json(text: str | bytes, name: str) -> Any:
    try:
        return json.loads(text.removeprefix("\ufeff") if isinstance(text, str) else text)
    except UnicodeDecodeError as error:
        raise InvalidWorkflow(f"{name} is no workflow; give a .json file or a .png that contains one.") from error
    except (ValueError, RecursionError) as error:  # A number with thousands of digits raises ValueError too.
        raise InvalidWorkflow(f"{name} is not valid JSON: {reason_of(error)}.") from error


def is_graph(data: Any) -> bool:
    """Return whether this is a workflow in UI format."""
    return isinstance(data, dict) and isinstance(data.get("nodes"), list) and "links" in data


def is_prompt(data: Any) -> bool:
    """Return whether this is a workflow in API format."""
    return isinstance(data, dict) and bool(data) and all(_is_prompt_node(node) for node in data.values())


def title_of(node: dict[str, Any]) -> str:
    """Return what a user calls a node of a prompt: its title, else its class."""
    return str(node.get("_meta", {}).get("title") or node["class_type"])


def _is_prompt_node(node: Any) -> bool:
    if not isinstance(node, dict) or not isinstance(node.get("class_type", 0), str | None):
        return False
    return isinstance(node.get("inputs", {}), dict) and isinstance(node.get("_meta", {}), dict)


def _from_png(path: Path) -> WorkflowFile:
    try:
        chunks = png_texts(path)
    except InvalidImage as error:
        raise InvalidWorkflow(str(error)) from error
    found: dict[str, Any] = {}
    for key in ("workflow", "prompt"):
        if key in chunks:
            found[key] = _read_json(chunks[key], f"The {key} in {shorten(path)}")
    graph = found.get("workflow") if is_graph(found.get("workflow")) else None
    prompt = found.get("prompt") if is_prompt(found.get("prompt")) else None
    if graph is None and prompt is None:
        raise InvalidWorkflow(
            f"{shorten(path)} contains no workflow; a picture loses it when another program saves it again."
        )
    return WorkflowFile(graph, prompt)
