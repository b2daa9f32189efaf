"""A Studio on mini, its HTTP client, and a running server process."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

pytest.importorskip("aiohttp", reason="TOPS Studio needs its extra: pip install 'tops-engine[studio]'")
pytest.importorskip("comfyui_frontend_package", reason="TOPS Studio needs the frontend's package")

from aiohttp import ClientSession, ClientWebSocketResponse, CookieJar
from aiohttp.test_utils import TestClient, TestServer
from tops_studio.server import create_app
from tops_studio.studio import Studio

from tests.conftest import Picture

ROOT = Path(__file__).resolve().parents[3]


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


def ask_prompt(question: str = "What number is written?", **options: Any) -> dict[str, Any]:
    """The workflow "Ask about an image" in API form."""
    ask = {"max_tokens": 8, "temperature": 0.0, "seed": 0} | options
    return {
        "1": node("LoadImage", image="tops_photo.jpg"),
        "2": node("TOPSLoadModel", model="mini", dtype="float32", device="cpu", quantization="none", attention="sdpa"),
        "3": node("TOPSAsk", model=["2", 0], image=["1", 0], prompt=question, **ask),
        "4": node("PreviewImage", images=["3", 1]),
        "5": node("PreviewAny", source=["3", 0]),
    }


def caption_prompt(clip: str) -> dict[str, Any]:
    """Captions every frame of a clip, one by one: as long a run as one likes."""
    return {
        "1": node("LoadImage", image=clip),
        "2": node("TOPSLoadModel", model="mini", dtype="float32", device="cpu", quantization="none", attention="sdpa"),
        "3": node(
            "TOPSCaptionBatch", model=["2", 0], images=["1", 0], style="caption", batch_size=1, max_tokens=32,
            temperature=0.0, seed=0,
        ),
    }  # fmt: skip


def save_clip(path: Path, picture: Picture, num_frames: int = 600) -> None:
    frames = [picture(24, 24, seed) for seed in range(num_frames)]
    frames[0].save(path, save_all=True, append_images=frames[1:], lossless=True)


class Client:
    """A script that talks to Studio as ComfyUI's users do."""

    def __init__(self, session: ClientSession | TestClient[Any, Any], base: str = "") -> None:
        self.session = session
        self.base = base
        self.id = uuid4().hex
        self.socket: ClientWebSocketResponse | None = None

    async def connect(self) -> dict[str, Any]:
        self.socket = await self.session.ws_connect(f"{self.base}/ws?clientId={self.id}")
        first = await self.socket.receive_json()
        assert isinstance(first, dict)
        return first

    async def get(self, path: str, **options: Any) -> Any:
        async with self.session.get(self.base + path, **options) as response:
            assert response.status == 200, await response.text()
            return await response.json()

    async def post(self, path: str, body: Any = None, status: int = 200) -> Any:
        async with self.session.post(self.base + path, json=body) as response:
            text = await response.text()
            assert response.status == status, text
            return json.loads(text) if text.startswith(("{", "[")) else text

    async def queue(self, prompt: dict[str, Any], **more: Any) -> str:
        answer = await self.post("/api/prompt", {"prompt": prompt, "client_id": self.id, **more})
        return str(answer["prompt_id"])

    async def messages_of(self, job_id: str, timeout: float = 60) -> list[tuple[str, Any]]:
        """Everything told about a job until it ends; texts as ("text", bytes)."""
        assert self.socket is not None
        messages: list[tuple[str, Any]] = []
        while True:
            message = await self.socket.receive(timeout=timeout)
            if isinstance(message.data, bytes):
                messages.append(("text", message.data))
                continue
            told = json.loads(message.data)
            if told["data"].get("prompt_id") == job_id:
                messages.append((told["type"], told["data"]))
                if told["type"] == "executing" and told["data"]["node"] is None:
                    return messages

    async def run(self, prompt: dict[str, Any], **more: Any) -> dict[str, Any]:
        """Queue, wait, and read the history."""
        job_id = await self.queue(prompt, **more)
        await self.messages_of(job_id)
        found = await self.get(f"/api/history/{job_id}")
        return dict(found[job_id])


@pytest.fixture
async def studio(tmp_path: Path) -> Studio:
    return Studio.open(tmp_path / "studio")


@pytest.fixture
async def client(studio: Studio) -> AsyncIterator[Client]:
    async with TestClient(TestServer(create_app(studio)), cookie_jar=CookieJar(unsafe=True)) as session:
        yield Client(session)


class ServerProcess:
    """`tops studio` as a user starts it."""

    def __init__(self, folder: Path, *options: str) -> None:
        command = [sys.executable, "-m", "tops_engine.cli", "studio", "--port", "0", "--folder", str(folder), *options]
        path = os.pathsep.join([str(ROOT), str(ROOT / "integrations"), os.environ.get("PYTHONPATH", "")])
        began = time.monotonic()
        self.process = subprocess.Popen(
            command, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=os.environ | {"PYTHONPATH": path}
        )
        assert self.process.stderr is not None
        line = ""
        while "http://" not in line:
            line = self.process.stderr.readline()
            assert line, "tops studio did not start"
        self.seconds_to_start = time.monotonic() - began
        self.url = line.split("TOPS Studio: ")[1].split("  ")[0].strip().rstrip("/")

    def stop(self, number: int = signal.SIGINT) -> int:
        self.process.send_signal(number)
        return self.process.wait(timeout=30)


@pytest.fixture
def start_server(tmp_path: Path) -> Iterator[Callable[..., ServerProcess]]:
    started: list[ServerProcess] = []

    def start(folder: Path | None = None, *options: str) -> ServerProcess:
        server = ServerProcess(folder or tmp_path / "studio", *options)
        started.append(server)
        return server

    yield start
    for server in started:
        if server.process.poll() is None:
            server.process.kill()
            server.process.wait(timeout=10)
