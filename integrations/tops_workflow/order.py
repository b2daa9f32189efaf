"""The order in which the nodes of a prompt run: each after its sources."""

from collections.abc import Collection

from tops_workflow.convert import is_link
from tops_workflow.formats import Prompt


def sources_of(prompt: Prompt, node_id: str) -> list[str]:
    """Return the ids of the nodes that a node is linked to and that exist, each once."""
    values = prompt[node_id].get("inputs", {}).values()
    return list(dict.fromkeys(str(value[0]) for value in values if is_link(value) and str(value[0]) in prompt))


def sources_first(prompt: Prompt, last: str, done: Collection[str] = ()) -> tuple[list[str], list[list[str]]]:
    """Return the nodes that a node needs and that are not ``done``, sources first, and the circles among them.

    A circle lists its nodes with the first one again at the end. The search uses no recursion, so that its depth has no
    limit.
    """
    order: dict[str, None] = {}
    circles: list[list[str]] = []
    path: dict[str, list[str]] = {}
    waiting = [last] if last not in done else []
    while waiting:
        node_id = waiting[-1]
        if node_id in order:
            waiting.pop()
            continue
        left = path.setdefault(node_id, sources_of(prompt, node_id))
        if not left:
            del path[node_id]
            order[node_id] = None
            waiting.pop()
            continue
        source = left.pop(0)
        if source in path:
            names = list(path)
            circles.append([*names[names.index(source) :], source])
        elif source not in order and source not in done:
            waiting.append(source)
    return list(order), circles
