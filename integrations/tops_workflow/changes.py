"""Values set from outside: ``--set "TOPS Ask.prompt=What colour is it?"``."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tops_workflow.definitions import Definition
from tops_workflow.formats import InvalidWorkflow, Prompt
from tops_workflow.widgets import Input, inputs_of, is_upload


def set_value(prompt: Prompt, assignment: str, definitions: Mapping[str, Definition]) -> Path | None:
    """Apply one ``NODE.input=value`` to a prompt, in place; NODE is an id, a title or a class.

    Returns
    -------
    The file, where the value is the path of one for an uploading input: the caller brings it to the host, which knows
    it by the file's name.

    Raises
    ------
    InvalidWorkflow
        If there is no such node or input, or more than one such node, or the value does not fit.
    """
    target, equals, text = assignment.partition("=")
    name, dot, input_name = target.rpartition(".")
    if not equals or not dot:
        raise InvalidWorkflow(f"{assignment!r} is not of the form NODE.input=value.")
    node = prompt[_find(prompt, name)]
    entries = {entry.name: entry for entry in inputs_of(definitions[node["class_type"]]) if entry.is_widget}
    entry = entries.get(input_name)
    if entry is None:
        raise InvalidWorkflow(f"{node['class_type']} has no widget {input_name!r}; it has {', '.join(entries)}.")
    path = Path(text)
    if is_upload(entry) and path.is_file():
        node["inputs"][input_name] = path.name
        return path
    node["inputs"][input_name] = _read(entry, text)
    return None


def _find(prompt: Prompt, name: str) -> str:
    if name in prompt:
        return name
    found = [
        node_id for node_id, node in prompt.items() if name in (node["class_type"], node.get("_meta", {}).get("title"))
    ]
    if len(found) == 1:
        return found[0]
    there = ", ".join(
        f"{node_id} ({node.get('_meta', {}).get('title', node['class_type'])})" for node_id, node in prompt.items()
    )
    what = f"Several nodes are called {name!r}; give the id" if found else f"There is no node {name!r}"
    raise InvalidWorkflow(f"{what}. The nodes are {there}.")


def _read(entry: Input, text: str) -> Any:
    if entry.kind in ("STRING", "COMBO"):
        return text
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        value = None
    is_bool = isinstance(value, bool)
    fits = {
        "INT": isinstance(value, int) and not is_bool,
        "FLOAT": isinstance(value, int | float) and not is_bool,
        "BOOLEAN": is_bool,
    }
    if not fits[entry.kind]:
        words = {"INT": "a whole number", "FLOAT": "a number", "BOOLEAN": "true or false"}[entry.kind]
        raise InvalidWorkflow(f"{entry.name} takes {words}, not {text!r}.")
    return value
