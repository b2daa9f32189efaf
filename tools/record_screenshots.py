"""Show all templates and blueprints in both themes and renderers: ``python -m tools.record_screenshots URL FOLDER``.

``URL`` is the address of a running ComfyUI with the pack, or of ``tops studio``. Each workflow is opened there in
Chromium; those that begin with the embedded model are run. ``FOLDER`` receives the pictures,
``<theme>-<renderer>-<name>.png``, and an overview ``<theme>-<renderer>.png`` of all of them, to look at.
"""

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from tops_engine.media.images import open_image

ROOT = Path(__file__).resolve().parents[1]
WIDTH, HEIGHT = 2400, 1460
THEMES = ("dark", "light")
RENDERERS = {"classic": False, "new": True}

#: Milliseconds for the page to draw, and for a run on a busy processor.
DRAW, RUN = 1200, 120_000

# The width of a picture in the overview, and how many stand in a row.
THUMBNAIL, COLUMNS = 820, 3

READY = "window.app?.extensionManager?.setting && window.app.graph"
SET = "([name, value]) => void app.extensionManager.setting.set(name, value)"
OPEN = "graph => void app.loadGraphData(graph, true, false, null, {deferWarnings: true})"
FIT = "() => void app.extensionManager.command.execute('Comfy.Canvas.FitView')"
START = "() => { app.api.lastEnd = null; app.queuePrompt(0) }"
ENDS = """() => ['execution_success', 'execution_error', 'execution_interrupted'].forEach(
    kind => app.api.addEventListener(kind, () => { app.api.lastEnd = kind }))"""
ENTER = "() => { const [node] = app.graph.nodes; app.canvas.openSubgraph(node.subgraph, node) }"

ADD_STYLE = "style => { document.head.appendChild(document.createElement('style')).textContent = style }"

#: What lies over the canvas and is no part of a workflow.
HIDE = ".p-toast, .minimap-main-container { display: none !important }"


def workflows() -> Iterator[tuple[str, dict[str, Any], bool]]:
    """Give the name of each workflow, its graph, and whether it is a blueprint."""
    for folder in ("workflows", "subgraphs"):
        for path in sorted((ROOT / folder).glob("*.json")):
            yield path.stem, json.loads(path.read_text(encoding="utf-8")), folder == "subgraphs"


def runs_at_once(graph: dict[str, Any]) -> bool:
    """Return whether all models of a workflow are the embedded one, so that it runs without a download."""
    models = [node["widgets_values"][0] for node in graph["nodes"] if node["type"] == "TOPSLoadModel"]
    return bool(models) and set(models) == {"mini"}


def take(url: str, folder: Path) -> None:
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
        for renderer, is_new in RENDERERS.items():
            page.goto(url, wait_until="domcontentloaded")
            page.wait_for_function(READY)
            page.evaluate(SET, ["Comfy.VueNodes.Enabled", is_new])
            page.evaluate(SET, ["LiteGraph.Canvas.MinFontSizeForLOD", 0])  # show texts at every scale
            page.evaluate(ADD_STYLE, HIDE)
            page.evaluate(ENDS)
            page.wait_for_timeout(3 * DRAW)
            page.keyboard.press("Escape")
            taken: dict[str, list[Path]] = {theme: [] for theme in THEMES}
            for name, graph, is_blueprint in workflows():
                page.evaluate(OPEN, graph)
                page.wait_for_timeout(DRAW)
                if runs_at_once(graph):
                    page.evaluate(START)
                    page.wait_for_function("app.api.lastEnd", timeout=RUN)
                _take_in_themes(page, folder, renderer, name, taken)
                if is_blueprint:
                    page.evaluate(ENTER)
                    _take_in_themes(page, folder, renderer, f"{name} (inside)", taken)
            for theme, pictures in taken.items():
                _overview(pictures).save(folder / f"{theme}-{renderer}.png")
        browser.close()


def _take_in_themes(page: Any, folder: Path, renderer: str, name: str, taken: dict[str, list[Path]]) -> None:
    for theme in THEMES:
        page.evaluate(SET, ["Comfy.ColorPalette", theme])
        page.wait_for_timeout(DRAW // 2)
        page.evaluate(FIT)
        page.wait_for_timeout(DRAW)
        path = folder / f"{theme}-{renderer}-{name}.png"
        page.screenshot(path=str(path))
        taken[theme].append(path)
    print(renderer, name, flush=True)


def _overview(paths: list[Path]) -> Image.Image:
    """Return the pictures in rows."""
    height = THUMBNAIL * HEIGHT // WIDTH
    rows = -(-len(paths) // COLUMNS)
    sheet = Image.new("RGB", (THUMBNAIL * COLUMNS, height * rows))
    for number, path in enumerate(paths):
        small = open_image(path).resize((THUMBNAIL, height), Image.Resampling.LANCZOS)
        sheet.paste(small, (number % COLUMNS * THUMBNAIL, number // COLUMNS * height))
    return sheet


if __name__ == "__main__":
    address, target = sys.argv[1], Path(sys.argv[2])
    target.mkdir(parents=True, exist_ok=True)
    take(address, target)
