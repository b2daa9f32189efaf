"""Start a real ComfyUI with the pack linked into it, if COMFYUI_PATH is set.

COMFYUI_PATH is its folder. COMFYUI_PYTHON is the interpreter with its packages and ours; the default is the tests' own.
"""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tops_workflow.comfyui_cli import link
from tops_workflow.comfyui_client import ComfyUIClient

START_SECONDS = 180
#: Milliseconds that the browser waits for something to happen.
BROWSER_TIMEOUT = 90_000

#: A node that gives small random language models of ComfyUI's own classes. With it, Load CLIP reads small files too.
SMALL_CLIP = """
import sys

sys.path.append({folder!r})
from core_models import read_small_files, small_clip

class SmallClip:
    CATEGORY, FUNCTION, RETURN_TYPES = "test", "load", ("CLIP",)

    @classmethod
    def INPUT_TYPES(cls):
        return {{"required": {{"kind": ("STRING", {{"default": "qwen3_vl"}})}}}}

    def load(self, kind):
        return (small_clip(kind),)

read_small_files()
NODE_CLASS_MAPPINGS = {{"TestSmallClip": SmallClip}}
"""


@dataclass(frozen=True)
class Server:
    """A running ComfyUI: its address, its folder of inputs and outputs, and its log."""

    url: str
    base: Path
    log_file: Path

    @property
    def log(self) -> str:
        return self.log_file.read_text(errors="replace")

    @property
    def times_loaded(self) -> int:
        """Return how often ComfyUI's memory manager loaded weights of ours for the first time."""
        return self.log.count("Requested to load VisionLanguageModel")

    @property
    def version(self) -> str:
        version: str = json.loads(self.get("/system_stats"))["system"]["comfyui_version"]
        return version

    def get(self, path: str) -> bytes:
        with urllib.request.urlopen(self.url + path, timeout=30) as answer:
            content: bytes = answer.read()
            return content


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    comfyui = os.environ.get("COMFYUI_PATH")
    if not comfyui:
        pytest.skip("COMFYUI_PATH names no ComfyUI")
    base = tmp_path_factory.mktemp("comfyui")
    for name in ("custom_nodes", "input", "output", "temp", "user", "models"):
        (base / name).mkdir()
    link(base)
    (base / "custom_nodes" / "small_clip.py").write_text(SMALL_CLIP.format(folder=str(Path(__file__).parent)))
    shutil.copy(Path(__file__).with_name("memory_probe.py"), base / "custom_nodes")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    python = os.environ.get("COMFYUI_PYTHON", sys.executable)
    options = ["--cpu", "--port", str(port), "--base-directory", str(base), "--disable-api-nodes"]
    options += ["--database-url", "sqlite:///:memory:"]
    log = base / "log.txt"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}
    with log.open("w") as out:
        process = subprocess.Popen(
            [python, "main.py", *options], cwd=comfyui, stdout=out, stderr=subprocess.STDOUT, env=environment
        )
    running = Server(f"http://127.0.0.1:{port}", base, log)
    try:
        _wait(running, process)
        yield running
    finally:
        process.terminate()
        process.wait(20)


def _wait(server: Server, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        if re.search(r"To see the GUI go to", server.log):
            return
        time.sleep(0.3)
    pytest.fail(f"ComfyUI did not start:\n{server.log[-3000:]}")


@pytest.fixture(scope="module")
def page(server: Server) -> Iterator[Any]:
    """Return an empty page of headless Chromium."""
    sync_api = pytest.importorskip("playwright.sync_api")
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium is installed")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1920, "height": 1080})
        page.set_default_timeout(BROWSER_TIMEOUT)
        yield page
        browser.close()


def open_template(page: Any, server: Server, title: str) -> None:
    """Open a template of ours from the template browser, as a user does; keep the browser's errors in ``problems``."""
    page.problems = []
    page.on("console", lambda message: page.problems.append(message.text) if message.type == "error" else None)
    page.goto(server.url, wait_until="domcontentloaded")
    page.wait_for_function("window.app?.graph && window.app?.extensionManager")
    dialog = page.get_by_role("dialog")
    page.wait_for_timeout(3000)
    if not dialog.is_visible():  # the first visit opens it automatically
        page.get_by_role("button", name="Templates").first.click()
    dialog.get_by_text("tops-engine").first.click()
    dialog.get_by_text(title).first.wait_for()
    page.wait_for_timeout(1500)
    save_picture(page, "comfyui_templates")
    dialog.get_by_text(title).first.click()
    page.wait_for_function("window.app.graph.nodes.some(node => node.type.startsWith('TOPS'))")


def save_picture(page: Any, name: str) -> None:
    """Save a screenshot for the documentation if TOPS_SCREENSHOTS names a folder."""
    folder = os.environ.get("TOPS_SCREENSHOTS")
    if not folder:
        return
    usual = page.viewport_size
    page.set_viewport_size({"width": 2200, "height": 1375})
    for setting, value in (("Comfy.Minimap.Visible", False), ("LiteGraph.Canvas.MinFontSizeForLOD", 0)):
        page.evaluate("([name, value]) => app.extensionManager.setting.set(name, value)", [setting, value])
    if page.evaluate("app.graph.nodes.length"):
        page.evaluate("void app.extensionManager.command.execute('Comfy.Canvas.FitView')")
    page.wait_for_timeout(3000)
    path = Path(folder) / f"{name}.png"
    page.screenshot(path=str(path))
    page.set_viewport_size(usual)


@pytest.fixture
def comfyui(server: Server) -> ComfyUIClient:
    return ComfyUIClient(server.url)
