"""Promoted widgets: a node that stands for a subgraph says what the nodes inside receive."""

from typing import Any

import pytest
from tops_workflow.convert import graph_to_prompt
from tops_workflow.formats import Graph

from tests.integrations.tops_workflow.test_convert import DEFINITIONS, graph, saved

Saved = dict[str, Any]


def part(name: str, nodes: list[Saved], inputs: list[tuple[str, str]], links: list[tuple[Any, ...]]) -> Graph:
    """A subgraph; links are (id, source, slot, target, slot)."""
    keys = ("id", "origin_id", "origin_slot", "target_id", "target_slot")
    ports = [
        {"name": port, "type": kind, "linkIds": [link[0] for link in links if link[1:3] == (-10, number)]}
        for number, (port, kind) in enumerate(inputs)
    ]
    saved_links = [dict(zip(keys, link, strict=True)) for link in links]
    return {"id": name, "nodes": nodes, "links": saved_links, "inputs": ports, "outputs": []}


def host(number: int, part_id: str, values: Any, *names: str, **more: Any) -> Saved:
    """A node that stands for a subgraph, with inputs that are linked to nothing."""
    inputs = [(name, "STRING", None) for name in names]
    return saved(number, part_id, values, inputs, outputs=(), **more)


NOTE = part(
    "note",
    [saved(2, "Show", ["stale"], [("value", "*", None), ("note", "STRING", 1)], outputs=())],
    [("words", "STRING")],
    [(1, -10, 0, 2, 1)],
)


def notes(*nodes: Saved, parts: tuple[Graph, ...] = (NOTE,), links: Any = ()) -> dict[str, Any]:
    prompt = graph_to_prompt(graph(*nodes, links=links, definitions={"subgraphs": list(parts)}), DEFINITIONS)
    return {node_id: node["inputs"]["note"] for node_id, node in prompt.items() if "note" in node["inputs"]}


def test_the_outer_value_wins_over_the_stale_inner_one() -> None:
    assert notes(host(20, "note", ["What the user typed"], "words")) == {"20:2": "What the user typed"}


def test_each_use_has_its_own_value_and_without_one_that_of_the_inner_node() -> None:
    found = notes(host(20, "note", ["first"], "words"), host(21, "note", ["second"], "words"), host(22, "note", []))
    assert found == {"20:2": "first", "21:2": "second", "22:2": "stale"}


def test_values_count_only_the_promoted_inputs() -> None:
    show = saved(2, "Show", ["stale"], [("value", "*", 1), ("note", "STRING", 2)], outputs=())
    both = part("both", [show], [("value", "*"), ("words", "STRING")], [(1, -10, 0, 2, 0), (2, -10, 1, 2, 1)])
    number = saved(1, "Number")
    use = saved(20, "both", ["typed"], [("value", "*", 7), ("words", "STRING", None)], outputs=())
    assert notes(number, use, parts=(both,), links=[(7, 1, 0, 20, 0, "INT")]) == {"20:2": "typed"}


def test_nested_subgraphs_take_the_outermost_value() -> None:
    outer = part("outer", [host(5, "note", ["middle"], "words")], [("shown", "STRING")], [(3, -10, 0, 5, 0)])
    outer["nodes"][0]["inputs"][0]["link"] = 3
    assert notes(host(20, "outer", ["outermost"], "shown"), parts=(outer, NOTE)) == {"20:5:2": "outermost"}
    assert notes(host(20, "outer", [], "shown"), parts=(outer, NOTE)) == {"20:5:2": "middle"}


def test_a_link_from_outside_wins_over_both_values() -> None:
    use = saved(20, "note", ["typed"], [("words", "STRING", 9)], outputs=())
    many = saved(1, "Many", outputs=("INT", "STRING"))
    assert notes(many, use, links=[(9, 1, 1, 20, 0, "STRING")]) == {"20:2": ["1", 1]}


@pytest.mark.parametrize("entry", [["2", "note"], ["7", "2: note"]])
def test_older_files_name_the_promoted_widgets(entry: list[str]) -> None:
    plain = part("plain", [saved(2, "Show", ["stale"], [("value", "*", None), ("note", "STRING", None)])], [], [])
    outer = part("outer", [host(7, "plain", [], properties={"proxyWidgets": [["2", "note"]]})], [], [])
    parts, name = ((plain,), "plain") if entry[0] == "2" else ((outer, plain), "outer")
    found = notes(host(20, name, ["typed"], properties={"proxyWidgets": [entry]}), parts=parts)
    assert list(found.values()) == ["typed"]


def test_a_primitive_inside_is_promoted_too() -> None:
    primitive = saved(3, "PrimitiveNode", ["inner", "fixed"], outputs=("STRING",))
    show = saved(2, "Show", ["stale"], [("value", "*", None), ("note", "STRING", 1)], outputs=())
    inside = part("inside", [show, primitive], [], [(1, 3, 0, 2, 1)])
    use = host(20, "inside", ["typed"], properties={"proxyWidgets": [["3", "value"]]})
    assert notes(use, parts=(inside,)) == {"20:2": "typed"}
    assert notes(host(20, "inside", []), parts=(inside,)) == {"20:2": "inner"}


def test_nodes_of_subgraphs_get_ids_of_their_own_where_the_root_has_them() -> None:
    assert notes(saved(2, "Number"), host(20, "note", ["typed"], "words")) == {"20:1": "typed"}, (
        "1 is the first free one"
    )
