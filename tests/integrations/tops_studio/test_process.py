"""`tops studio` as a process: starting, listening, stopping."""

import asyncio
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from aiohttp import ClientSession, CookieJar

from tests.conftest import Tops
from tests.integrations.tops_studio.conftest import Client, ServerProcess, ask_prompt


def test_it_starts_answers_and_stops_on_ctrl_c_and_remembers(
    start_server: Callable[..., ServerProcess], tmp_path: Path
) -> None:
    async def ask(url: str) -> str:
        async with ClientSession() as session:
            client = Client(session, url)
            await client.connect()
            entry = await client.run(ask_prompt())
            return str(entry["outputs"]["5"]["text"][0])

    async def count(url: str) -> int:
        async with ClientSession() as session:
            return len(await Client(session, url).get("/api/history"))

    server = start_server()
    assert server.url.startswith("http://127.0.0.1:")
    assert asyncio.run(ask(server.url)) == "5"
    assert server.stop() == 0
    server = start_server()
    assert asyncio.run(count(server.url)) == 1


def test_a_taken_port_is_one_clear_line(tops: Tops, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        result = tops("studio", "--port", taken.getsockname()[1], "--folder", tmp_path, "--model", "")
    assert result.code == 1
    assert "choose another with --port" in result.err


@pytest.mark.parametrize("options", [["--listen", "0.0.0.0"], ["--listen", "0.0.0.0", "--token", "short"]])
def test_other_machines_need_a_token(tops: Tops, tmp_path: Path, options: list[str]) -> None:
    result = tops("studio", "--folder", tmp_path, *options)
    assert result.code == 1
    assert "16 characters" in result.err


def test_with_a_token_only_those_who_bring_it_get_in(start_server: Callable[..., ServerProcess]) -> None:
    token = "a-secret-of-enough-characters"
    server = start_server(None, "--token", token, "--model", "")
    assert server.url.endswith(f"?token={token}")
    base = server.url.split("/?")[0]

    async def statuses() -> list[int]:
        found = []
        async with ClientSession() as stranger, ClientSession(cookie_jar=CookieJar(unsafe=True)) as guest:
            found.append((await stranger.get(f"{base}/api/users")).status)
            found.append((await stranger.get(f"{base}/api/users?token=wrong")).status)
            found.append((await guest.get(f"{base}/api/users?token={token}")).status)
            found.append((await guest.get(f"{base}/api/users")).status)
        return found

    assert asyncio.run(statuses()) == [401, 401, 200, 200]


def test_another_comfyui_is_started_with_our_nodes_linked(tops: Tops, tmp_path: Path) -> None:
    (tmp_path / "custom_nodes").mkdir()
    (tmp_path / "main.py").write_text(
        "import pathlib, sys; pathlib.Path('said.txt').write_text(' '.join(sys.argv)); sys.exit(3)"
    )
    for _ in range(2):
        result = tops("studio", "--comfyui", tmp_path, "--port", 8200)
        assert result.code == 3, "its own exit code"
    assert (tmp_path / "said.txt").read_text() == "main.py --listen 127.0.0.1 --port 8200 --disable-auto-launch"
    assert (tmp_path / "custom_nodes" / "tops-engine" / "nodes" / "asking.py").is_file()


def test_what_is_no_comfyui_is_refused(tops: Tops, tmp_path: Path) -> None:
    assert "no main.py" in tops("studio", "--comfyui", tmp_path).err
    (tmp_path / "main.py").touch()
    assert "custom_nodes" in tops("studio", "--comfyui", tmp_path).err
