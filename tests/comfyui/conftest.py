"""Start a real ComfyUI with the pack linked into it, if COMFYUI_PATH is set.

COMFYUI_PATH is its folder. COMFYUI_PYTHON is the interpreter with its packages and ours; the default is the tests' own.
"""

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

import pytest
from tops_workflow.comfyui_cli import link
from tops_workflow.comfyui_client import ComfyUIClient

START_SECONDS = 180

#: A node that stands for ComfyUI's Load CLIP: a small random language model of its own classes.
SMALL_CLIP = """
import sys

class SmallClip:
    CATEGORY, FUNCTION, RETURN_TYPES = "test", "load", ("CLIP",)

    @classmethod
    def INPUT_TYPES(cls):
        return {{"required": {{"kind": ("STRING", {{"default": "qwen3_vl"}})}}}}

    def load(self, kind):
        sys.path.append({folder!r})
        from core_models import small_clip
        return (small_clip(kind),)

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


@pytest.fixture
def comfyui(server: Server) -> ComfyUIClient:
    return ComfyUIClient(server.url)
