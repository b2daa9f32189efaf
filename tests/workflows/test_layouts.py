"""The templates lie well in both renderers: nothing overlaps, and no link runs behind a node.

``node_sizes.json`` holds the sizes of the nodes as Chromium shows them after a run; `python -m tools.record_layouts`
measures them.
"""

import json
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from tools.record_locales import LANGUAGES
from tools.template_geometry import TITLE, boxes_of, links_behind_nodes

ROOT = Path(__file__).parents[2]
TEMPLATES = sorted((ROOT / "workflows").glob("*.json"))
SIZES = json.loads((Path(__file__).parent / "node_sizes.json").read_text(encoding="utf-8"))

#: Pixels between two nodes, their titles included, and between a group and what is not in it.
LEAST_GAP, LEAST_GROUP_GAP = 25, 10


def graph_of(path: Path) -> dict[str, Any]:
    graph: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return graph


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_nodes_have_room_and_links_are_seen(path: Path) -> None:
    graph, sizes = graph_of(path), SIZES[path.stem]
    placed = {node["id"]: boxes_of(node, sizes) for node in graph["nodes"]}
    for one, other in combinations(placed, 2):
        assert placed[one].gap(placed[other]) >= LEAST_GAP, (one, other)
    assert links_behind_nodes(graph["links"], placed) == []


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_the_sizes_are_those_of_the_nodes_in_the_template(path: Path) -> None:
    ids = {str(node["id"]) for node in graph_of(path)["nodes"]}
    assert set(SIZES[path.stem]["classic"]) == set(SIZES[path.stem]["new"]) == ids


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_a_group_holds_its_nodes_and_no_other(path: Path) -> None:
    graph, sizes = graph_of(path), SIZES[path.stem]
    for group in graph["groups"]:
        left, top, width, height = group["bounding"]
        for node in graph["nodes"]:
            box = boxes_of(node, sizes)
            across = left <= box.left and box.left + box.width <= left + width
            inside = across and top <= box.top - TITLE and box.top + box.height <= top + height
            gaps = (box.left - left - width, left - box.left - box.width, box.top - TITLE - top - height)
            outside = max(*gaps, top - box.top - box.height) >= LEAST_GROUP_GAP
            assert inside != outside, node["id"]


def test_the_cards_of_the_template_browser_have_titles_and_descriptions() -> None:
    cards = json.loads((ROOT / "web" / "templates.json").read_text(encoding="utf-8"))
    assert set(cards) == {"en", *LANGUAGES}
    for language in cards.values():
        assert set(language) == {path.stem for path in TEMPLATES}
        assert all(card["title"] and card["description"] for card in language.values())
