"""Set values of a prompt: ``--set "TOPS Ask.prompt=What colour is it?"``."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tops_engine.errors import listed, quote, shorten
from tops_workflow.definitions import Definition
from tops_workflow.formats import InvalidWorkflow, Prompt, title_of
from tops_workflow.widgets import Input, inputs_of, is_upload

#: Nodes that one message names.
MAX_SHOWN_NODES = 20


def set_value(prompt: Prompt, assignment: str, definitions: Mapping[str, Definition]) -> Path | None:
    """Apply one ``NODE.input=value`` to a prompt, in place; NODE is an id, a title or a class.

    Returns
    -------
    The file, if the value is the path of a file for an input that takes uploads: the caller copies it to the host,
    where the value names it.

    Raises
    ------
    InvalidWorkflow
        If there is no such node or input, or more than one such node, or the value does not fit.
    """
    target, equals, text = assignment.partition("=")
    name, dot, input_name = target.rpartition(".")
    if not equals or not dot:
        raise InvalidWorkflow(f"{quote(assignment)} is not of the form NODE.input=value.")
    node = prompt[_find(prompt, name)]
    node.setdefault("inputs", {})
    if node["class_type"] not in definitions:
        raise InvalidWorkflow(f"The inputs of {quote(str(node['class_type']))} are not known here.")
    entries = {entry.name: entry for entry in inputs_of(definitions[node["class_type"]]) if entry.is_widget}
    entry = entries.get(input_name)
    if entry is None:
        kind = shorten(node["class_type"])
        raise InvalidWorkflow(f"{kind} has no widget {quote(input_name)}; it has {listed(entries)}.")
    path = Path(text)
    if is_upload(entry) and path.is_file():
        node["inputs"][input_name] = path.name
        return path
    node["inputs"][input_name] = _read(entry, text)
    return None


def _find(prompt: Prompt, name: str) -> str:
    if name in prompt:
        return name
    found = [node_id for node_id, node in prompt.items() if name in (node["class_type"], title_of(node))]
    if len(found) == 1:
        return found[0]
    there = [f"{node_id} ({title_of(node)})" for node_id, node in prompt.items()]
    shown = ", ".join(shorten(text) for text in there[:MAX_SHOWN_NODES])
    more = f" and {len(there) - MAX_SHOWN_NODES} more" if len(there) > MAX_SHOWN_NODES else ""
    what = f"Several nodes are called {quote(name)}; give the id" if found else f"There is no node {quote(name)}"
    raise InvalidWorkflow(f"{what}. The nodes are {shown}{more}.")


def _read(entry: Input, text: str) -> Any:
    if entry.kind in ("STRING", "COMBO"):
        return text
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    is_bool = isinstance(value, bool)
    fits = {
        "INT": isinstance(value, int) and not is_bool,
        "FLOAT": isinstance(value, int | float) and not is_bool,
        "BOOLEAN": is_bool,
    }
    if not fits[entry.kind]:
        words = {"INT": "a whole number", "FLOAT": "a number", "BOOLEAN": "true or false"}[entry.kind]
        raise InvalidWorkflow(f"{shorten(entry.name)} takes {words}, not {quote(text)}.")
    return value
