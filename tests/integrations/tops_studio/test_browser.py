"""TOPS Studio in a real browser: the official frontend, driven as a user does."""

import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, Request, Response, sync_playwright

from tests.conftest import Picture
from tests.integrations.tops_studio.conftest import ServerProcess, caption_prompt, save_clip
from tests.workflows.test_shipped_workflows import HERE_AT_ONCE

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")

TIMEOUT = 90_000

#: Files of the user that the frontend looks for; 404 says that there is none yet.
ABSENT_FILES = [f"/api/userdata/{name}" for name in ("user.css", "comfy.templates.json", "workflows%2F.index.json")]

ASK_IS_THERE = """window.app?.graph?._nodes?.some(node => node.type === "TOPSAsk")"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("studio")


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[ServerProcess]:
    process = ServerProcess(folder)
    yield process
    if process.process.poll() is None:
        process.stop()


class VainRequests(list[str]):
    """Record what the frontend asks for in vain: with 404 or 405, or at another address."""

    def __init__(self, context: BrowserContext, server: ServerProcess) -> None:
        self.url = server.url
        context.on("response", self.answered)
        context.on("request", self.asked)
        context.on("requestfailed", self.failed)

    def answered(self, response: Response) -> None:
        path = response.url.removeprefix(self.url)
        if response.status in (404, 405) and path not in ABSENT_FILES:
            self.append(f"{response.status} {response.request.method} {path}")

    def asked(self, request: Request) -> None:
        if not request.url.startswith((self.url, "blob:", "data:")):
            self.append(f"outside: {request.url}")

    def failed(self, request: Request) -> None:
        # The content security policy of the page blocked it, so that nothing left the browser.
        if "csp" in (request.failure or "").lower():
            self.remove(f"outside: {request.url}")


@pytest.fixture(scope="module")
def context(browser: Browser) -> Iterator[BrowserContext]:
    context = browser.new_context(viewport={"width": 1500, "height": 950})
    context.set_default_timeout(TIMEOUT)
    yield context
    context.close()


@pytest.fixture(scope="module")
def vain_requests(context: BrowserContext, server: ServerProcess) -> VainRequests:
    return VainRequests(context, server)


@pytest.fixture(autouse=True)
def _no_request_is_in_vain(vain_requests: VainRequests) -> Iterator[None]:
    yield
    found = vain_requests.copy()
    vain_requests.clear()
    assert found == []


class Opened(NamedTuple):
    """The page as a newcomer sees it first."""

    page: Page
    title: str
    graph: str


@pytest.fixture(scope="module")
def opened(context: BrowserContext, server: ServerProcess, vain_requests: VainRequests) -> Opened:
    """Open Studio as a newcomer does. Starting the frontend takes longer than most tests, so that they share it."""
    page = open_studio(context, server)
    return Opened(page, page.title(), page.evaluate("JSON.stringify(app.graph.serialize())"))


@pytest.fixture
def page(opened: Opened) -> Page:
    """Load the graph that a newcomer sees anew, as a new workflow."""
    opened.page.keyboard.press("Escape")
    opened.page.evaluate("graph => app.loadGraphData(JSON.parse(graph))", opened.graph)
    opened.page.wait_for_function(ASK_IS_THERE)
    return opened.page


def open_studio(context: BrowserContext, server: ServerProcess, path: str = "/") -> Page:
    page = context.new_page()
    page.goto(server.url + path)
    page.wait_for_function(ASK_IS_THERE)
    return page


def node_id(page: Page, kind: str) -> str:
    return str(page.evaluate("kind => String(app.graph._nodes.find(node => node.type === kind).id)", kind))


def set_widget(page: Page, kind: str, name: str, value: Any) -> None:
    page.evaluate(
        """([kind, name, value]) => {
            const node = app.graph._nodes.find(node => node.type === kind)
            const widget = node.widgets.find(widget => widget.name === name)
            widget.value = value
            widget.callback?.(value)
        }""",
        [kind, name, value],
    )


def press_run(page: Page) -> None:
    page.get_by_role("button", name="Run", exact=True).first.click()


def jobs(server: ServerProcess) -> list[dict[str, Any]]:
    with urlopen(f"{server.url}/api/jobs?limit=1000") as answer:
        return list(json.load(answer)["jobs"])


def run(page: Page, server: ServerProcess) -> dict[str, Any]:
    """Press Run; the history entry of what came of it."""
    before = {job["id"] for job in jobs(server)}
    press_run(page)
    deadline = time.monotonic() + TIMEOUT / 1000
    while time.monotonic() < deadline:
        new = [job for job in jobs(server) if job["id"] not in before]
        if new and new[0]["status"] not in ("pending", "in_progress"):
            with urlopen(f"{server.url}/api/history/{new[0]['id']}") as answer:
                return dict(json.load(answer)[new[0]["id"]])
        time.sleep(0.1)
    raise AssertionError("nothing ran")


def texts(entry: dict[str, Any]) -> list[str]:
    return [text for shown in entry["outputs"].values() for text in shown.get("text", [])]


def cached(entry: dict[str, Any]) -> list[str]:
    return list(next(data["nodes"] for kind, data in entry["status"]["messages"] if kind == "execution_cached"))


def test_a_newcomer_presses_run_and_sees_the_answer_and_the_token_map(
    page: Page, opened: Opened, server: ServerProcess
) -> None:
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    entry = run(page, server)
    ask, preview = node_id(page, "TOPSAsk"), node_id(page, "PreviewImage")
    assert entry["status"]["status_str"] == "success"
    page.wait_for_function("id => app.nodeOutputs?.[id]?.images?.length === 1", arg=preview)
    page.wait_for_function("id => app.graph.getNodeById(id)?.imgs?.[0]?.naturalWidth > 500", arg=preview)
    (answer,) = entry["outputs"][ask]["text"]
    assert answer
    page.wait_for_function(
        """answer => app.graph._nodes.some(node => node.type === "PreviewAny"
            && node.widgets?.some(widget => widget.value === answer))""",
        arg=answer,
    )
    assert text_on_node(page, "TOPSAsk") == answer
    assert opened.title.endswith("ask_about_an_image - TOPS Studio")
    assert errors == []


def text_on_node(page: Page, kind: str) -> str | None:
    """Return the text of the last run that a node shows."""
    return page.evaluate(
        """kind => app.graph._nodes.find(node => node.type === kind).widgets
            .find(widget => widget.name === "shown_text")?.value""",
        kind,
    )


@pytest.mark.full  # the first test shows the text in the classic renderer
@pytest.mark.parametrize("new_renderer", [False, True])
def test_answers_stay_on_nodes_and_widgets_follow_the_method(
    page: Page, server: ServerProcess, new_renderer: bool
) -> None:
    page.evaluate("on => app.extensionManager.setting.set('Comfy.VueNodes.Enabled', on)", new_renderer)
    entry = run(page, server)
    (answer,) = entry["outputs"][node_id(page, "TOPSAsk")]["text"]
    page.wait_for_function("!app.graph._nodes.some(node => node.progress !== undefined)")
    assert text_on_node(page, "TOPSAsk") == answer
    if new_renderer:
        place = f"[data-node-id='{node_id(page, 'TOPSAsk')}'] textarea"
        assert answer in [area.input_value() for area in page.locator(place).all()]
        shown = page.locator(f"[data-node-id='{node_id(page, 'TOPSPruning')}']").inner_text()
        assert "keep" in shown
        assert "alpha" not in shown
    saved = page.evaluate("JSON.stringify(app.graph.serialize())")
    hidden = """app.graph._nodes.find(node => node.type === "TOPSPruning").widgets
        .filter(widget => widget.hidden).map(widget => widget.name)"""
    assert page.evaluate(hidden) == []
    set_widget(page, "TOPSPruning", "method", "divprune")
    assert page.evaluate(hidden) == ["alpha", "lambda", "raters"]
    set_widget(page, "TOPSPruning", "then", "tops")
    assert page.evaluate(hidden) == []
    page.evaluate("graph => app.loadGraphData(JSON.parse(graph))", saved)
    page.wait_for_function(f"({hidden}).length === 0")
    assert "shown_text" not in saved


#: Commands that leave the page, open a dialog of the system, or need something selected.
NOT_TRIED = ("Open", "Help", "Close", "Support", "User.", "Manager", "Publish", "Clear", "Load", "Onboarding", "Export")


@pytest.mark.full  # the other tests check the requests of the most usual steps, and another test those in the code
def test_whatever_a_user_opens_is_answered(browser: Browser, server: ServerProcess) -> None:
    """Run the commands of the frontend, which open its panels, dialogs and menus."""
    with browser.new_context() as context:
        vain = VainRequests(context, server)
        page = open_studio(context, server)
        names = page.evaluate("app.extensionManager.command.commands.map(command => command.id)")
        assert "tops.openInComfyUI" in names
        run_command = "id => void Promise.resolve(app.extensionManager.command.execute(id)).catch(() => {})"
        for name in names:
            if not any(word in name for word in NOT_TRIED) or "Sidebar" in name:
                page.evaluate(run_command, name)
                page.wait_for_timeout(60)
                page.keyboard.press("Escape")
        page.wait_for_timeout(500)
    assert vain == []


def test_another_keep_runs_again_without_loading_the_model_again(page: Page, server: ServerProcess) -> None:
    first = run(page, server)
    set_widget(page, "TOPSPruning", "keep", 0.5)
    second = run(page, server)
    assert node_id(page, "TOPSLoadModel") in cached(second)
    assert node_id(page, "TOPSAsk") not in cached(second)
    assert node_id(page, "LoadImage") in cached(second)
    assert first["status"]["completed"]
    assert second["status"]["completed"]


def test_ones_own_picture_is_uploaded_and_asked_about(
    page: Page, server: ServerProcess, folder: Path, picture: Picture, tmp_path: Path
) -> None:
    picture(300, 200, 7).save(tmp_path / "mine.png")
    with page.expect_file_chooser() as chooser:
        page.evaluate("""() => app.graph._nodes.find(node => node.type === "LoadImage").widgets
            .find(widget => widget.type === "button").callback()""")
    chooser.value.set_files(tmp_path / "mine.png")
    page.wait_for_function(
        """app.graph._nodes.find(node => node.type === "LoadImage").widgets
            .some(widget => widget.name === "image" && widget.value === "mine.png")"""
    )
    # The widget shows the name before the server has written the file.
    deadline = time.monotonic() + TIMEOUT / 1000
    while not (folder / "input" / "mine.png").is_file() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert (folder / "input" / "mine.png").is_file()
    entry = run(page, server)
    assert entry["prompt"][2][node_id(page, "LoadImage")]["inputs"]["image"] == "mine.png"
    assert entry["status"]["completed"]


def test_a_wrong_value_is_refused_with_its_sentence_and_nothing_runs(page: Page, server: ServerProcess) -> None:
    before = len(jobs(server))
    set_widget(page, "TOPSAsk", "prompt", "   ")
    page.evaluate("""app.graph._nodes.find(node => node.type === "TOPSAsk").disconnectInput("image")""")
    press_run(page)
    page.wait_for_function("""app.graph._nodes.find(node => node.type === "TOPSAsk").has_errors === true""")
    page.get_by_text("The prompt is empty").first.wait_for()
    assert len(jobs(server)) == before


def test_stop_ends_a_long_run(page: Page, server: ServerProcess, folder: Path, picture: Picture) -> None:
    save_clip(folder / "input" / "long.webp", picture)
    before = {job["id"] for job in jobs(server)}
    page.evaluate("prompt => app.loadApiJson(prompt, 'long')", caption_prompt("long.webp"))
    page.wait_for_function("""app.graph._nodes.some(node => node.type === "TOPSCaptionBatch")""")
    press_run(page)
    page.wait_for_function("app.graph._nodes.some(node => node.progress > 0)")
    page.evaluate("app.api.interrupt(null)")
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        (new,) = [job for job in jobs(server) if job["id"] not in before]
        if new["status"] not in ("pending", "in_progress"):
            break
        time.sleep(0.1)
    assert new["status"] == "cancelled"


def test_a_graph_is_saved_and_found_again_after_a_reload(page: Page, server: ServerProcess, folder: Path) -> None:
    set_widget(page, "TOPSAsk", "prompt", 'What is "this" {exactly}? 日本')
    page.keyboard.press("Control+s")
    name = page.get_by_role("dialog").get_by_role("textbox")
    name.fill("my graph")
    name.press("Enter")
    saved = folder / "user" / "workflows" / "my graph.json"
    deadline = time.monotonic() + 30
    while not saved.is_file() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert "{exactly}? 日本" in saved.read_text(encoding="utf-8")
    page.reload()
    page.wait_for_function(ASK_IS_THERE)
    prompt = """app.graph._nodes.find(node => node.type === "TOPSAsk").widgets
        .find(widget => widget.name === "prompt").value"""
    page.wait_for_function(f"{prompt} === " + json.dumps('What is "this" {exactly}? 日本'))


def test_a_picture_dropped_on_the_canvas_brings_its_workflow_back(page: Page, server: ServerProcess) -> None:
    set_widget(page, "TOPSAsk", "prompt", "Dropped?")
    entry = run(page, server)
    (shown,) = entry["outputs"][node_id(page, "PreviewImage")]["images"]
    set_widget(page, "TOPSAsk", "prompt", "Something else")
    page.evaluate(
        """async url => {
            const file = new File([await (await fetch(url)).blob()], "result.png", {type: "image/png"})
            const data = new DataTransfer()
            data.items.add(file)
            document.querySelector("canvas#graph-canvas, canvas").dispatchEvent(
                new DragEvent("drop", {dataTransfer: data, bubbles: true, clientX: 1300, clientY: 700}))
        }""",
        f"{server.url}/api/view?{urlencode(shown)}",
    )
    page.wait_for_function(
        """app.graph._nodes.find(node => node.type === "TOPSAsk")?.widgets
            .find(widget => widget.name === "prompt").value === "Dropped?" """
    )


@pytest.mark.full  # test_server.py shows that each of 20 clients is told about its own prompts
def test_two_tabs_run_side_by_side_and_each_sees_its_own(
    context: BrowserContext, page: Page, server: ServerProcess
) -> None:
    other = open_studio(context, server, "/?template=ask_about_an_image&source=tops-engine")
    set_widget(page, "TOPSAsk", "prompt", "What colour is the star?")
    set_widget(other, "TOPSAsk", "prompt", "What number is written?")
    press_run(page)
    press_run(other)
    for one in (page, other):
        preview = node_id(one, "PreviewImage")
        one.wait_for_function("id => app.nodeOutputs?.[id]?.images?.length === 1", arg=preview)
    shown = [one.evaluate("id => app.nodeOutputs[id].text[0]", node_id(one, "TOPSAsk")) for one in (page, other)]
    assert shown[0] != shown[1]


#: The corpus of saved graphs converts every template in the frontend, and another test runs each without it.
IN_EVERY_RUN = {"compare_methods"}
TEMPLATES = sorted(path.stem for path in HERE_AT_ONCE)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in IN_EVERY_RUN else pytest.mark.full) for name in TEMPLATES]
)
def test_every_template_opens_without_missing_nodes_and_runs(
    context: BrowserContext, server: ServerProcess, name: str
) -> None:
    page = context.new_page()
    page.goto(f"{server.url}/?template={name}&source=tops-engine")
    page.wait_for_function("window.app?.graph?._nodes?.some(node => node.type.startsWith('TOPS'))")
    with urlopen(f"{server.url}/api/object_info") as answer:
        known = set(json.load(answer))
    kinds = set(page.evaluate("app.graph._nodes.map(node => node.type)"))
    assert kinds - known - {"MarkdownNote", "Note", "Reroute", "PrimitiveNode"} == set()
    entry = run(page, server)
    assert entry["status"]["status_str"] == "success", entry["status"]["messages"][-1]


@pytest.mark.full  # test_process.py shows that a new process has the history of the last one
def test_history_and_settings_are_there_after_a_restart(
    browser: Browser, tmp_path: Path, start_server: Callable[..., ServerProcess]
) -> None:
    server = start_server(tmp_path / "again")
    with browser.new_context() as context:
        context.set_default_timeout(TIMEOUT)
        page = open_studio(context, server)
        entry = run(page, server)
    server.stop()
    again = start_server(tmp_path / "again")
    assert [job["id"] for job in jobs(again)] == [entry["prompt"][1]]
    with browser.new_context() as context:
        context.set_default_timeout(TIMEOUT)
        page = open_studio(context, again)
        assert page.evaluate("app.graph._nodes.length") > 3
