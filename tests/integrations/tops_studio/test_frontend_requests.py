"""Every endpoint that the installed frontend names is answered, or is listed here with the reason why not."""

import json
import logging
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from tops_studio import pack_content
from tops_studio.pack_content import PACK
from tops_studio.server import create_app, frontend_folder
from tops_studio.studio import Studio

from tests.conftest import Picture
from tests.integrations.tops_studio.conftest import Client

#: How the frontend's code names an endpoint: fetchApi(`/jobs/${id}`).
CALLS = re.compile(r"(fetchApi|apiURL|internalURL|fileURL)\([`'\"]((?:[^`'\"$]|\$\{[^}]*\}+)+)")

#: Endpoints of ComfyUI's cloud, its manager and its agent: the frontend asks for them where a feature flag is set, and
#: Studio sets none.
OF_OTHERS = (
    "agent/.*", "assets.*", "deploy/.*", "hub/.*", "providers", "secrets.*", "user", "userdata/x/publish", "v2/.*",
    "workflows/.*", "workspace/.*",
)  # fmt: skip

#: `viewvideo` is an endpoint of the pack VideoHelperSuite. Studio has none of ComfyUI's own templates, of which the
#: frontend asks for the files by name.
NOT_ASKED = [f"/api/(?:{'|'.join(OF_OTHERS)})", "/api/viewvideo", "/templates/x(?:.json)?"]


def named_endpoints() -> set[str]:
    """Return the paths in the frontend's code, with ``x`` in the place of values."""
    found = set()
    for path in frontend_folder().glob("assets/*.js"):
        text = path.read_text(encoding="utf-8")
        for kind, written in CALLS.findall(text) if "fetchApi" in text or "URL(" in text else ():
            endpoint = re.sub(r"\$\{[^}]*\}+", "x", written).partition("?")[0]
            endpoint = endpoint + "x" if endpoint.endswith("/") else endpoint  # the code adds a value behind it
            # What begins with a value is one of the paths that are named elsewhere.
            if endpoint.startswith("/") and not endpoint.startswith("/x"):
                found.add({"internalURL": "/internal", "fileURL": ""}.get(kind, "/api") + endpoint)
    return found


def patterns(app: web.Application) -> list[str]:
    infos = [resource.get_info() for resource in app.router.resources()]
    return [
        info["pattern"].pattern if "pattern" in info else re.escape(info["path"])
        for info in infos
        if "prefix" not in info
    ]


@pytest.fixture
def app(studio: Studio) -> web.Application:
    return create_app(studio)


async def test_every_endpoint_that_the_frontend_names_is_answered(app: web.Application) -> None:
    endpoints = named_endpoints()
    assert {"/api/prompt", "/internal/logs/raw", "/api/global_subgraphs/x"} <= endpoints
    endpoints = {name.replace("/workflow_templates/x/", f"/workflow_templates/{PACK}/") for name in endpoints}
    known = patterns(app)
    unanswered = {name for name in endpoints if not any(re.fullmatch(pattern, name) for pattern in known)}
    new = {name for name in unanswered if not any(re.fullmatch(kind, name) for kind in NOT_ASKED)}
    assert new == set(), "answer them in tops_studio, or list them with the reason"


async def test_translations_and_subgraphs_of_the_pack_are_served(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    german = tmp_path / "locales" / "de"
    german.mkdir(parents=True)
    (german / "main.json").write_text('{"g": {"answer": "Antwort"}}', encoding="utf-8")
    (german / "nodeDefs.json").write_text('{"TOPSAsk": {"display_name": "Fragen"}}', encoding="utf-8")
    (tmp_path / "subgraphs").mkdir()
    (tmp_path / "subgraphs" / "Ask with map.json").write_text('{"nodes": []}', encoding="utf-8")
    monkeypatch.setattr(pack_content, "pack_folder", lambda: tmp_path)
    expected = {"g": {"answer": "Antwort"}, "nodeDefs": {"TOPSAsk": {"display_name": "Fragen"}}}
    assert await client.get("/api/i18n") == {"de": expected}
    ((key, entry),) = (await client.get("/api/global_subgraphs")).items()
    assert entry["name"] == "Ask with map"
    assert (await client.get(f"/api/global_subgraphs/{key}"))["data"] == '{"nodes": []}'
    assert (await client.session.get("/api/global_subgraphs/none")).status == 404


async def test_the_page_has_the_name_of_studio_and_sends_nothing_elsewhere(client: Client) -> None:
    response = await client.session.get("/?template=x")
    assert "<title>TOPS Studio</title>" in await response.text()
    policy = response.headers["Content-Security-Policy"]
    assert "default-src 'self'" in policy
    assert "http:" not in policy
    assert "https:" not in policy
    scripts = await client.get("/api/extensions")
    assert "/extensions/tops-studio/studio.js" in scripts
    for script in scripts:
        answer = await client.session.get(script)
        assert "registerExtension" in await answer.text()


async def test_the_log_panel_shows_what_was_logged(client: Client) -> None:
    logging.getLogger("tops_engine.test").warning("The weights are %s.", "here")
    told = await client.get("/internal/logs/raw")
    assert told["entries"][-1]["m"] == "WARNING tops_engine.test: The weights are here.\n"


@pytest.fixture
async def comfyui(tmp_path: Path) -> AsyncIterator[TestServer]:
    """A second Studio, whose interface is ComfyUI's, in the place of a ComfyUI."""
    server = TestServer(create_app(Studio.open(tmp_path / "comfyui")))
    async with server:
        yield server


async def test_a_graph_is_sent_to_comfyui_with_its_pictures(
    studio: Studio, comfyui: TestServer, tmp_path: Path, picture: Picture
) -> None:
    picture(20, 10).save(studio.folders.input / "mine.png")
    (studio.base / "secret.png").write_bytes(b"x")
    graph = {
        "nodes": [{"type": "LoadImage", "widgets_values": ["mine.png", "image"]}, {"widgets_values": ["../secret.png"]}]
    }
    app = create_app(studio, comfyui=str(comfyui.make_url("/")))
    async with TestClient(TestServer(app)) as session:
        for saved in ("my graph", "my graph (2)"):
            answer = await session.post("/api/tops/open_in_comfyui", json={"name": "my graph", "graph": graph})
            assert answer.status == 200, await answer.text()
            assert (await answer.json())["saved"] == saved
    there = tmp_path / "comfyui"
    assert json.loads((there / "user/workflows/my graph.json").read_text()) == graph
    assert (there / "input/mine.png").read_bytes() == (studio.folders.input / "mine.png").read_bytes()
    assert not (there / "input/secret.png").exists()


async def test_without_a_comfyui_the_answer_says_what_to_do(studio: Studio) -> None:
    async with TestClient(TestServer(create_app(studio, comfyui="http://127.0.0.1:9"))) as session:
        answer = await session.post("/api/tops/open_in_comfyui", json={"name": "a", "graph": {"nodes": []}})
        assert answer.status == 502
        assert "--comfyui-address" in await answer.text()
