"""The real frontend in Chromium: what it sends for a saved graph."""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, sync_playwright

from tests.integrations.tops_studio.conftest import ServerProcess

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
TIMEOUT = 90_000

#: The page grows slower with every graph that it loads.
GRAPHS_A_PAGE = 30

IS_READY = "window.app?.graph?._nodes?.length > 0"
SEND = """async graph => {
    const quiet = {skipAssetScans: true, silentAssetErrors: true, deferWarnings: true}
    if (!await app.loadGraphData(graph, true, false, null, quiet)) throw new Error("the graph did not load")
    await new Promise(resolve => setTimeout(resolve, 20))
    return JSON.stringify((await app.graphToPrompt()).output)
}"""


class Frontend:
    """Converts graphs in the browser, with the node classes of ``definitions`` beside those of Studio."""

    def __init__(self, browser: Any, url: str, definitions: Mapping[str, Any]) -> None:
        self._browser = browser
        self._url = url
        self._definitions = dict(definitions)
        self._page: Page | None = None
        self._count = 0

    def prompt(self, graph: Mapping[str, Any]) -> dict[str, Any]:
        """Return the prompt that the frontend sends for a graph."""
        if self._page is None or self._count % GRAPHS_A_PAGE == 0:
            self._open()
        assert self._page is not None
        self._count += 1
        sent: dict[str, Any] = json.loads(self._page.evaluate(SEND, graph))
        return sent

    def _open(self) -> None:
        if self._page is not None:
            self._page.close()
        self._page = self._browser.new_page()
        self._page.set_default_timeout(TIMEOUT)
        self._page.route("**/api/object_info", self._answer)
        self._page.goto(f"{self._url}/?template=ask_about_an_image&source=tops-engine")
        self._page.wait_for_function(IS_READY)

    def _answer(self, route: Any) -> None:
        known = route.fetch().json()
        route.fulfill(json=known | self._definitions)


@contextmanager
def open_frontend(folder: Path, definitions: Mapping[str, Any]) -> Iterator[Frontend]:
    """Start TOPS Studio and Chromium."""
    server = ServerProcess(folder)
    try:
        with sync_playwright() as started:
            browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
            yield Frontend(browser, server.url, definitions)
            browser.close()
    finally:
        server.stop()
