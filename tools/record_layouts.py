"""Lay out the workflow templates for both renderers of the frontend: ``python -m tools.record_layouts [URL]``.

``URL`` is the address of a running ComfyUI with the pack, such as ``http://127.0.0.1:8188/``, or of ``tops studio``.
Every template is opened there in Chromium, its nodes are measured as they are after a run, and the sizes are written to
``tests/workflows/node_sizes.json``. Without an address, the templates are laid out with the sizes of the last time.
Nodes that TOPS Studio lacks keep their saved size. A test checks overlaps, margins and links.
"""

import json
import random
import shutil
import sys
from pathlib import Path
from typing import Any

from tools.template_geometry import GROUP_MARGIN, GROUP_TITLE, TITLE, Box, boxes_of, links_behind_nodes

ROOT = Path(__file__).resolve().parents[1]
WORKFLOWS = ROOT / "workflows"
SIZES = ROOT / "tests" / "workflows" / "node_sizes.json"

# Pixels between columns, and between the nodes of a column beside their title.
COLUMN_GAP, ROW_GAP = 90, 30
TRIES = 1500

#: What the nodes grow to when a run shows its texts, measured in the page.
MEASURE = """async isNew => {
    const least = Object.fromEntries(app.graph._nodes.map(node => [node.id, Math.ceil(node.computeSize()[1])]))
    for (const node of app.graph._nodes)
        if (node.constructor.nodeData?.output_node || node.type === 'TOPSPruneLLM')
            node.onExecuted?.({text: ['A first line\\nand a second one']})
    await new Promise(resolve => setTimeout(resolve, 500))
    const scale = app.canvas.ds.scale
    return Object.fromEntries(app.graph._nodes.map(node => {
        const grown = node.type === 'MarkdownNote' ? 0 : node.computeSize()[1]
        let size = [node.size[0], Math.max(node.size[1], grown)]
        const box = isNew && document.querySelector(`[data-node-id="${node.id}"]`)?.getBoundingClientRect()
        if (box) size = [box.width / scale, box.height / scale - 30]
        return [node.id, [...size.map(Math.ceil), least[node.id]]]
    }))
}"""

#: Nodes outside the window are not drawn.
SHOW_ALL = "() => { app.canvas.ds.scale = 0.2; app.canvas.ds.offset = [200, 600]; app.canvas.setDirty(true, true) }"

Graph = dict[str, Any]
Sizes = dict[str, dict[str, dict[str, list[int]]]]


def measure(url: str) -> Sizes:
    """Return ``{template: {renderer: {node id: [width, height, least height before a run]}}}``."""
    from playwright.sync_api import sync_playwright

    sizes: Sizes = {}
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1000, "height": 700})
        for renderer, is_new in (("classic", False), ("new", True)):
            page.goto(f"{url}?x=1")
            page.wait_for_function("window.app?.extensionManager?.setting && window.app.graph")
            page.evaluate("on => void app.extensionManager.setting.set('Comfy.VueNodes.Enabled', on)", is_new)
            for path in sorted(WORKFLOWS.glob("*.json")):
                graph = json.loads(path.read_text(encoding="utf-8"))
                page.evaluate("graph => void app.loadGraphData(graph, true, false, null, {deferWarnings: true})", graph)
                page.evaluate(SHOW_ALL)
                page.wait_for_timeout(1000)
                sizes.setdefault(path.stem, {})[renderer] = page.evaluate(MEASURE, is_new)
                print(renderer, path.stem, flush=True)
        browser.close()
    return sizes


def lay_out(graph: Graph, sizes: dict[str, dict[str, list[int]]]) -> None:
    """Set the places of a graph's nodes, by columns, so that no link runs behind a node."""
    notes = [node for node in graph["nodes"] if node["type"] == "MarkdownNote"]
    nodes = {node["id"]: node for node in graph["nodes"] if node["type"] != "MarkdownNote"}
    columns = _columns(graph, nodes)
    sized = {number: boxes_of(node, sizes) for number, node in nodes.items()}
    chance = random.Random(0)
    best: tuple[float, dict[int, tuple[int, int]]] | None = None
    orders = [list(column) for column in columns]
    tops = [0 for _ in columns]
    for _ in range(TRIES):
        tried_orders, tried_tops = [list(order) for order in orders], list(tops)
        for _ in range(chance.choice((1, 1, 2))):
            number = chance.randrange(len(columns))
            if chance.random() < 0.5 and len(tried_orders[number]) > 1:
                one, other = chance.sample(range(len(tried_orders[number])), 2)
                order = tried_orders[number]
                order[one], order[other] = order[other], order[one]
            else:
                tried_tops[number] = chance.randrange(0, 30) * 40
        places = _places(tried_orders, tried_tops, sized, nodes, graph)
        cost = _cost(graph, places, sized)
        if best is None or cost < best[0]:
            best, orders, tops = (cost, places), tried_orders, tried_tops
    assert best is not None
    for number, (left, top) in best[1].items():
        nodes[number]["pos"] = [left, top]
    above = min(top for _, top in best[1].values())
    left = 40
    for note in notes:
        note["pos"] = [left, above - note["size"][1] - 2 * TITLE - ROW_GAP]
        left += note["size"][0] + COLUMN_GAP
    for group in graph.get("groups") or []:
        group["bounding"] = _bounding([(nodes[number], sized[number]) for number in _grouped(graph)])


def _grouped(graph: Graph) -> list[int]:
    """Return the nodes of the group: a template suggests them as a next step, so that they are muted."""
    has_group = bool(graph.get("groups"))
    return [node["id"] for node in graph["nodes"] if has_group and node.get("mode") == 2]


def _columns(graph: Graph, nodes: dict[int, Any]) -> list[list[int]]:
    """Return the nodes in columns: each behind its sources, and what has no source directly before its first user."""
    links = [(link[1], link[3]) for link in graph["links"]]
    depth = dict.fromkeys(nodes, 0)
    grouped = set(_grouped(graph))
    for _ in nodes:
        for source, target in links:
            depth[target] = max(depth[target], depth[source] + 1)
        outside = [depth[number] for number in nodes if number not in grouped]
        for number in grouped:
            depth[number] = max(depth[number], max(outside) + 1)
    for number in nodes:
        users = [depth[target] for source, target in links if source == number]
        if users and all(target != number for _, target in links):
            depth[number] = max(depth[number], min(users) - 1)
    return [[number for number in nodes if depth[number] == level] for level in sorted(set(depth.values()))]


def _places(
    orders: list[list[int]], tops: list[int], sized: dict[int, Box], nodes: dict[int, Any], graph: Graph
) -> dict[int, tuple[int, int]]:
    places, left = {}, 40
    grouped = set(_grouped(graph))
    for number, (order, top) in enumerate(zip(orders, tops, strict=True)):
        before = orders[number - 1] if number else order
        if not grouped.isdisjoint(order) and grouped.isdisjoint(before):
            left += 2 * GROUP_MARGIN
        y = top + TITLE + ROW_GAP
        for one in order:
            places[one] = (left, y)
            y += sized[one].height + TITLE + ROW_GAP
        left += max(sized[one].width for one in order) + COLUMN_GAP
    return places


def _cost(graph: Graph, places: dict[int, tuple[int, int]], sized: dict[int, Box]) -> float:
    placed = {number: sized[number].at(*place) for number, place in places.items()}
    behind = links_behind_nodes(graph["links"], placed)
    lengths = sum(abs(places[link[1]][1] - places[link[3]][1]) for link in graph["links"])
    bottom = max(box.top + box.height for box in placed.values())
    top = min(box.top for box in placed.values())
    return 5000 * len(behind) + 0.5 * lengths + (bottom - top) + 0.2 * top


def _bounding(members: list[tuple[Any, Box]]) -> list[int]:
    placed = [box.at(*node["pos"]) for node, box in members]
    left, top = min(box.left for box in placed), min(box.top for box in placed)
    right, bottom = max(box.left + box.width for box in placed), max(box.top + box.height for box in placed)
    width, height = right - left + 2 * GROUP_MARGIN, bottom - top + TITLE + GROUP_TITLE + 2 * GROUP_MARGIN
    return [left - GROUP_MARGIN, top - TITLE - GROUP_TITLE - GROUP_MARGIN, width, height]


def main() -> None:
    if len(sys.argv) > 1:
        SIZES.write_text(json.dumps(measure(sys.argv[1]), indent=1) + "\n", encoding="utf-8")
    sizes = json.loads(SIZES.read_text(encoding="utf-8"))
    for path in sorted(WORKFLOWS.glob("*.json")):
        graph = json.loads(path.read_text(encoding="utf-8"))
        for node in graph["nodes"]:
            if node["type"].startswith("TOPS") and str(node["id"]) in sizes[path.stem]["classic"]:
                node["size"][1] = sizes[path.stem]["classic"][str(node["id"])][2]
        lay_out(graph, sizes[path.stem])
        path.write_text(json.dumps(graph, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
