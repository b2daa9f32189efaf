"""Damaged requests to Studio: an answer in time, never a failure of the server, and messages that are short."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("aiohttp", reason="needs the extra studio: pip install 'tops-engine[studio]'")
pytest.importorskip("comfyui_frontend_package", reason="needs the package of the frontend")

from aiohttp import CookieJar, FormData
from aiohttp.test_utils import TestClient, TestServer
from tops_studio.server import create_app
from tops_studio.studio import Studio
from yarl import URL

from tests.fuzz.mutations import HOSTILE, Mutator, as_json
from tests.fuzz.rules import MAX_WAIT, check_message, level_memory, seeds

Client = TestClient[Any, Any]

SAMPLE = Path(__file__).parents[2] / "tops_engine" / "mini" / "sample.jpg"

EXTRA: dict[str, Any] = {"extra_pnginfo": {"workflow": {}}}
NAMES = ("a.jpg", "b.png", "../c.jpg", "", "d" * 300 + ".jpg", "e.mp4", "%00.jpg", "f")
PROMPT = {"1": {"class_type": "PreviewAny", "inputs": {"source": "text"}, "_meta": {"title": "Text"}}}
BODIES: list[tuple[str, Any]] = [
    (
        "/api/prompt",
        {"prompt": PROMPT, "client_id": "x", "extra_data": EXTRA, "number": 1},
    ),
    ("/api/prompt", {"prompt": PROMPT, "partial_execution_targets": ["1"], "front": True}),
    ("/api/queue", {"clear": False, "delete": ["1"]}),
    ("/api/interrupt", {"prompt_id": "1"}),
    ("/api/free", {"unload_models": False, "free_memory": True}),
    ("/api/history", {"delete": ["1"]}),
    ("/api/jobs/cancel", {"job_ids": ["1"]}),
    ("/api/settings", {"Comfy.Theme": "dark"}),
    ("/api/settings/Comfy.Theme", "dark"),
    ("/api/userdata/workflows%2Fa.json", {"nodes": []}),
]
QUERIES: list[tuple[str, dict[str, str]]] = [
    (
        "/api/view",
        {"filename": "tops_photo.jpg", "type": "input", "subfolder": "", "preview": "webp;50"},
    ),
    ("/api/jobs", {"status": "pending,completed", "limit": "5", "offset": "0"}),
    ("/api/history", {"max_items": "5", "offset": "1"}),
    ("/api/userdata", {"dir": "workflows", "recurse": "true", "full_info": "true", "split": "true"}),
    ("/api/object_info/LoadImage", {}),
    ("/api/internal/files/input", {}),
    ("/internal/files/input", {}),
    ("/api/history/1", {}),
    ("/api/jobs/1", {}),
    ("/templates/index.json", {}),
    ("/api/workflow_templates/tops-engine/ask_about_an_image.json", {}),
    ("/extensions/tops-engine/docs/TOPSAsk.md", {}),
]


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[Client]:
    studio = Studio.open(tmp_path / "studio")
    async with TestClient(TestServer(create_app(studio)), cookie_jar=CookieJar(unsafe=True)) as opened:
        yield opened


async def answer(client: Client, method: str, url: URL, case: str, **options: Any) -> None:
    """Send a request and check what comes back."""
    case = f"{case}: {method} {str(url)[:100]}"
    async with asyncio.timeout(MAX_WAIT), client.request(method, url, **options) as response:
        content = await response.read()
        assert response.status < 500 or response.status == 503, f"{case}: {response.status} {content[:300]!r}"
        if response.status >= 400 and (content or response.status != 404):  # a static file that is missing says nothing
            check_refusal(content.decode(errors="replace"), f"{case}: {response.status}")


def check_refusal(text: str, case: str) -> None:
    try:
        told = json.loads(text)
    except ValueError:
        check_message(text, case)
        return
    error = told.get("error") if isinstance(told, dict) else None
    if isinstance(error, dict):
        check_message(error["message"], case)
        check_lines(error["details"], case)
        for node in told["node_errors"].values():
            for fault in node["errors"]:
                check_message(fault["message"], case)
                check_lines(fault["details"], case)


def check_lines(text: str, case: str) -> None:
    if text:
        check_message(text, case)


async def test_damaged_bodies(client: Client) -> None:
    with level_memory("bodies"):
        for seed in seeds("request bodies"):
            mutator, case = Mutator(seed), f"body {seed}"
            path, body = BODIES[seed % len(BODIES)]
            text = as_json(mutator.value(body)).encode()
            if mutator.random.random() < 0.2:
                text = mutator.content(text)
            await answer(client, "POST", URL(path, encoded=True), case, data=text, headers=JSON)


async def test_damaged_addresses_and_queries(client: Client) -> None:
    texts = [str(value)[:2000] for value in HOSTILE if not isinstance(value, str) or value.isprintable()]
    for seed in seeds("addresses"):
        mutator, case = Mutator(seed), f"query {seed}"
        path, query = QUERIES[seed % len(QUERIES)]
        for name in list(query):
            if mutator.random.random() < 0.5:
                query = query | {name: mutator.random.choice(texts)}
        if mutator.random.random() < 0.3:
            path = path.rpartition("/")[0] + "/" + mutator.random.choice(texts)
        url = URL.build(path=path, query=query)
        await answer(client, mutator.random.choice(("GET", "GET", "POST", "DELETE")), url, case)


async def test_damaged_uploads(client: Client) -> None:
    picture = SAMPLE.read_bytes()
    with level_memory("uploads"):
        for seed in seeds("uploads"):
            mutator, case = Mutator(seed), f"upload {seed}"
            form = FormData()
            name = mutator.random.choice(NAMES)
            form.add_field("image", mutator.content(picture), filename=name, content_type="image/jpeg")
            for field in ("subfolder", "type", "overwrite"):
                if mutator.random.random() < 0.4:
                    form.add_field(field, mutator.random.choice(("input", "..", "/tmp", "x" * 400, "\x00", "true", "")))
            await answer(client, "POST", URL("/api/upload/image"), case, data=form)
    await answer(client, "POST", URL("/api/upload/image"), "no form", data=b"--x\r\n", headers=MULTIPART)


JSON = {"Content-Type": "application/json"}
MULTIPART = {"Content-Type": "multipart/form-data; boundary=x"}
