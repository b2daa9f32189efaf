"""Graphs into prompts as the frontend does it, and back."""

from typing import Any

import pytest
from tops_workflow.convert import graph_to_prompt
from tops_workflow.definitions import node_definition
from tops_workflow.formats import Graph, InvalidWorkflow
from tops_workflow.layout import prompt_to_graph

from tests.integrations.tops_workflow.test_runner import node
from tests.integrations.tops_workflow.toy_nodes import TOYS

DEFINITIONS = {kind: node_definition(kind, cls, f"A {kind}", "nodes") for kind, cls in TOYS.items()}


def saved(
    number: int, kind: str, values: Any = (), inputs: Any = (), outputs: Any = ("INT",), mode: int = 0, **more: Any
) -> dict[str, Any]:
    """A node as the frontend saves it; ``inputs`` are (name, type, link)."""
    return {
        "id": number,
        "type": kind,
        "mode": mode,
        "widgets_values": list(values) if not isinstance(values, dict) else values,
        "inputs": [{"name": name, "type": kind, "link": link} for name, kind, link in inputs],
        "outputs": [{"name": kind, "type": kind, "links": []} for kind in outputs],
        **more,
    }


def graph(*nodes: dict[str, Any], links: Any = (), **more: Any) -> Graph:
    return {"nodes": list(nodes), "links": [list(link) for link in links], "version": 0.4, **more}


def inputs_of(prompt: Any) -> dict[str, Any]:
    return {node_id: (entry["class_type"], entry["inputs"]) for node_id, entry in prompt.items()}


def test_widget_values_get_their_names_and_the_seeds_control_goes() -> None:
    prompt = graph_to_prompt(
        graph(
            saved(1, "Number", [5, 42, "randomize"]),
            saved(2, "Add", [7], [("b", "INT", 1)], title="Sum"),
            saved(3, "Show", ["n: "], [("value", "*", 2)], outputs=()),
            links=[(1, 1, 0, 2, 0, "INT"), (2, 2, 0, 3, 0, "INT")],
        ),
        DEFINITIONS,
    )
    assert inputs_of(prompt) == {
        "1": ("Number", {"value": 5, "seed": 42}),
        "2": ("Add", {"a": 7, "b": ["1", 0]}),
        "3": ("Show", {"value": ["2", 0], "note": "n: "}),
    }
    assert [entry["_meta"]["title"] for entry in prompt.values()] == ["A Number", "Sum", "A Show"]


def test_a_linked_widget_keeps_its_slot() -> None:
    prompt = graph_to_prompt(
        graph(
            saved(1, "Number", [5, 42, "fixed"]),
            saved(2, "Number", [1, 77, "fixed"], [("value", "INT", 1)]),
            links=[(1, 1, 0, 2, 0, "INT")],
        ),
        DEFINITIONS,
    )
    assert prompt["2"]["inputs"] == {"value": ["1", 0], "seed": 77}


LOST = [
    (["lost"], "lost", "INT", []),
    (["lost", "gone"], "lost", "INT", ["gone"]),  # the frontend skips the input after one that it removes
    (["lost", "gone", "away"], "lost", "INT", ["gone"]),
    (["other"], "value", "INT", ["other"]),  # the class has the widget
]


@pytest.mark.parametrize(("names", "widget", "kind", "kept"), LOST)
def test_an_input_of_a_widget_that_the_class_no_longer_has_loses_its_link(
    names: list[str], widget: str, kind: str, kept: list[str]
) -> None:
    entry = saved(2, "Number", [1, 77, "fixed"], [(name, kind, number) for number, name in enumerate(names, 1)])
    for slot in entry["inputs"]:
        slot["widget"] = {"name": widget}
    links = [(number, 1, 0, 2, number - 1, kind) for number in range(1, len(names) + 1)]
    prompt = graph_to_prompt(graph(saved(1, "Number", [5, 42, "fixed"]), entry, links=links), DEFINITIONS)
    assert prompt["2"]["inputs"] == {"value": 1, "seed": 77} | {name: ["1", 0] for name in kept}


def test_an_input_of_a_lost_widget_is_removed_also_inside_a_subgraph() -> None:
    entry = saved(2, "Add", [100], [("lost", "INT", 1), ("b", "INT", 2)])
    entry["inputs"][0]["widget"] = {"name": "lost"}
    part = subgraph("part", [entry], [(1, -10, 0, 2, 0), (2, -10, 0, 2, 1), (3, 2, 0, -20, 0)])
    prompt = graph_to_prompt(
        graph(
            saved(1, "Number", [5, 0, "fixed"]),
            saved(7, "part", (), [("number", "INT", 1)]),
            links=[(1, 1, 0, 7, 0, "INT")],
            definitions={"subgraphs": [part]},
        ),
        DEFINITIONS,
    )
    assert prompt["7:2"]["inputs"] == {"a": 100, "b": ["1", 0]}


@pytest.mark.parametrize("values", [[], {"value": 9}, None])
def test_missing_values_take_their_defaults(values: Any) -> None:
    entry = saved(1, "Number") | {"widgets_values": values}
    assert graph_to_prompt(graph(entry), DEFINITIONS)["1"]["inputs"] == {"value": 1, "seed": 0}


def test_muted_nodes_notes_and_their_links_go() -> None:
    prompt = graph_to_prompt(
        graph(
            saved(1, "Number", mode=2),
            saved(2, "Add", [1], [("b", "INT", 1)]),
            saved(3, "Note", ["remember"]),
            saved(4, "MarkdownNote", ["remember"]),
            links=[(1, 1, 0, 2, 0, "INT")],
        ),
        DEFINITIONS,
    )
    assert inputs_of(prompt) == {"2": ("Add", {"a": 1})}


def test_bypassed_nodes_pass_on_what_fits() -> None:
    prompt = graph_to_prompt(
        graph(
            saved(1, "Number"),
            saved(2, "Many", outputs=("INT", "STRING")),
            saved(3, "Mix", (), [("s", "STRING", 2), ("a", "INT", 1)], outputs=("INT",), mode=4),
            saved(4, "Add", (), [("b", "INT", 3)]),
            saved(5, "Nothing", (), [("s", "STRING", 6)], outputs=("INT",), mode=4),
            saved(6, "Add", (), [("b", "INT", 5)]),
            saved(7, "Show", (), [("value", "*", 7)], outputs=()),
            links=[
                (1, 1, 0, 3, 1, "INT"),
                (2, 2, 1, 3, 0, "STRING"),
                (3, 3, 0, 4, 0, "INT"),
                (5, 5, 0, 6, 0, "INT"),
                (6, 2, 1, 5, 0, "STRING"),
                (7, 3, 0, 7, 0, "INT"),
            ],
        ),
        DEFINITIONS,
    )
    assert prompt["4"]["inputs"]["b"] == ["1", 0]
    assert "b" not in prompt["6"]["inputs"]
    assert prompt["7"]["inputs"]["value"] == ["2", 1], "an input for any type gets the input at the output's place"
    assert set(prompt) == {"1", "2", "4", "6", "7"}


def test_reroutes_and_primitives_dissolve() -> None:
    prompt = graph_to_prompt(
        graph(
            saved(1, "Number"),
            saved(2, "Reroute", (), [("", "*", 1)], outputs=("*",)),
            saved(3, "Reroute", (), [("", "*", 2)], outputs=("*",)),
            saved(4, "PrimitiveNode", [8, "fixed"]),
            saved(5, "Add", [0], [("b", "INT", 3), ("a", "INT", 4)]),
            links=[
                (1, 1, 0, 2, 0, "INT"),
                (2, 2, 0, 3, 0, "INT"),
                (3, 3, 0, 5, 0, "INT"),
                (4, 4, 0, 5, 1, "INT"),
            ],
        ),
        DEFINITIONS,
    )
    assert inputs_of(prompt)["5"] == ("Add", {"a": 8, "b": ["1", 0]})
    assert set(prompt) == {"1", "5"}


def subgraph(name: str, nodes: list[dict[str, Any]], links: list[tuple[Any, ...]]) -> Graph:
    keys = ("id", "origin_id", "origin_slot", "target_id", "target_slot")
    return {
        "id": name,
        "nodes": nodes,
        "links": [dict(zip(keys, link, strict=True)) for link in links],
        "inputs": [{"name": "number", "type": "INT"}],
        "outputs": [{"name": "sum", "type": "INT"}],
    }


def test_subgraphs_are_written_out_also_inside_each_other() -> None:
    inner = subgraph(
        "inner",
        [saved(2, "Add", [100], [("b", "INT", 1)])],
        [(1, -10, 0, 2, 0), (2, 2, 0, -20, 0)],
    )
    outer = subgraph(
        "outer",
        [saved(3, "inner", (), [("number", "INT", 1)]), saved(4, "Add", [10], [("b", "INT", 2)])],
        [(1, -10, 0, 3, 0), (2, 3, 0, 4, 0), (3, 4, 0, -20, 0)],
    )
    prompt = graph_to_prompt(
        graph(
            saved(1, "Number", [5, 0, "fixed"]),
            saved(7, "outer", (), [("number", "INT", 1)]),
            saved(8, "outer", (), [("number", "INT", 2)]),
            saved(9, "Show", [""], [("value", "*", 3)], outputs=()),
            links=[(1, 1, 0, 7, 0, "INT"), (2, 7, 0, 8, 0, "INT"), (3, 8, 0, 9, 0, "INT")],
            definitions={"subgraphs": [outer, inner]},
        ),
        DEFINITIONS,
    )
    assert inputs_of(prompt) == {
        "1": ("Number", {"value": 5, "seed": 0}),
        "7:3:2": ("Add", {"a": 100, "b": ["1", 0]}),
        "7:4": ("Add", {"a": 10, "b": ["7:3:2", 0]}),
        "8:3:2": ("Add", {"a": 100, "b": ["7:4", 0]}),
        "8:4": ("Add", {"a": 10, "b": ["8:3:2", 0]}),
        "9": ("Show", {"value": ["8:4", 0], "note": ""}),
    }


@pytest.mark.parametrize(
    ("damaged", "text"),
    [
        (graph({"type": "Number"}), "no id or no type"),
        (graph(saved(1, "Add", (), [("b", "INT", 5)]), links=[(5, 3, 0, 1, 0, "INT")]), "node 3, which does not exist"),
        (graph(links=[(1, 2)]), "is no link"),
        (
            graph(
                saved(1, "Reroute", (), [("", "*", 1)]),
                saved(2, "Show", (), [("value", "*", 2)]),
                links=[(1, 1, 0, 1, 0, "*"), (2, 1, 0, 2, 0, "*")],
            ),
            "circle",
        ),
        (
            graph(saved(1, "a"), definitions={"subgraphs": [subgraph("a", [saved(1, "a")], [])]}),
            "contain each other",
        ),
    ],
)
def test_damaged_graphs_are_refused(damaged: Graph, text: str) -> None:
    with pytest.raises(InvalidWorkflow, match=text):
        graph_to_prompt(damaged, DEFINITIONS)


def test_a_link_that_is_not_in_the_file_is_no_link() -> None:
    prompt = graph_to_prompt(graph(saved(1, "Add", [4], [("b", "INT", 5)])), DEFINITIONS)
    assert prompt["1"]["inputs"] == {"a": 4}


def test_a_prompt_becomes_a_graph_and_the_same_prompt_again() -> None:
    prompt = {
        "4:2": node("Number", value=3, seed=9),
        "10": node("Add", a=["4:2", 0], b=["4:2", 0]),
        "3": node("Many", count=2),
        "11": node("Show", value=["10", 0], note=["3", 1]),
    }
    made = prompt_to_graph(prompt, DEFINITIONS)
    again = graph_to_prompt(made, DEFINITIONS)
    renamed = {"4:2": "1"}
    expected = {
        renamed.get(node_id, node_id): {
            name: [renamed.get(value[0], value[0]), value[1]] if isinstance(value, list) else value
            for name, value in entry["inputs"].items()
        }
        for node_id, entry in prompt.items()
    }
    assert {node_id: entry["inputs"] for node_id, entry in again.items()} == expected
    columns = {entry["id"]: entry["pos"][0] for entry in made["nodes"]}
    assert columns[1] < columns[10] < columns[11]
    assert len({tuple(entry["pos"]) for entry in made["nodes"]}) == 4
    assert made["nodes"][0]["widgets_values"] == [3, 9, "fixed"]


def test_unknown_classes_and_circles_cannot_become_graphs() -> None:
    with pytest.raises(InvalidWorkflow, match="KSampler"):
        prompt_to_graph({"1": node("KSampler")}, DEFINITIONS)
    with pytest.raises(InvalidWorkflow, match="circle"):
        prompt_to_graph({"1": node("Add", a=1, b=["2", 0]), "2": node("Add", a=1, b=["1", 0])}, DEFINITIONS)


def test_unconnected_nodes_of_other_packs_are_left_out() -> None:
    shown = saved(1, "Show", ["hello"], outputs=())
    label = saved(2, "Label (rgthree)", outputs=())
    needed = saved(3, "Fancy", (), [("x", "INT", 4)], outputs=())
    prompt = graph_to_prompt(graph(shown, label), DEFINITIONS)
    assert set(prompt) == {"1"}
    linked = graph(saved(1, "Number"), label, needed, links=[(4, 1, 0, 3, 0, "INT")])
    assert set(graph_to_prompt(linked, DEFINITIONS)) == {"1", "3"}


def test_group_nodes_are_expanded() -> None:
    inner = [
        {
            "type": "Number",
            "widgets_values": [1, 2, "fixed"],
            "inputs": [],
            "outputs": [{"name": "INT", "type": "INT"}],
        },
        {"type": "Add", "widgets_values": [3], "inputs": [{"name": "b", "type": "INT", "link": None}]},
    ]
    group = saved(5, "workflow>pair", [10, 20, "randomize", 30], outputs=("INT",))
    shown = saved(6, "Show", ["n "], [("value", "*", 1)], outputs=())
    extra = {"groupNodes": {"pair": {"nodes": inner, "links": [[0, 0, 1, 0, 1, "INT"]], "external": []}}}
    prompt = graph_to_prompt(graph(group, shown, links=[(1, 5, 0, 6, 0, "INT")], extra=extra), DEFINITIONS)
    assert inputs_of(prompt) == {
        "9:7": ("Number", {"value": 10, "seed": 20}),
        "9:8": ("Add", {"a": 30, "b": ["9:7", 0]}),
        "6": ("Show", {"value": ["9:8", 0], "note": "n "}),
    }


def test_a_subgraph_that_multiplies_without_end_is_refused() -> None:
    parts = [subgraph(f"p{n}", [saved(k, f"p{n + 1}", outputs=()) for k in range(10)], []) for n in range(12)]
    parts.append(subgraph("p12", [saved(1, "Show", outputs=())], []))
    with pytest.raises(InvalidWorkflow, match="more than 20000 nodes"):
        graph_to_prompt(graph(saved(1, "p0"), definitions={"subgraphs": parts}), DEFINITIONS)
