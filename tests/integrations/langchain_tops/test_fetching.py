"""Pictures from the web: only from allowed hosts with public addresses, and never without limits."""

import http.server
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from langchain_core.messages import HumanMessage
from langchain_tops import ChatTOPSLlava, fetching
from langchain_tops.fetching import fetch, public_address

from tests.support.chat_server import POLL_SECONDS
from tops_engine.errors import InvalidImage


class Site(http.server.BaseHTTPRequestHandler):
    """Answers by what the path says."""

    def do_GET(self) -> None:
        self.server.seen.append((self.headers["Host"], self.path))  # type: ignore[attr-defined]
        action, _, argument = self.path.partition("?")[0].lstrip("/").partition("/")
        if action == "to":
            self.send_response(302)
            self.send_header("Location", argument)
            self.end_headers()
        elif action == "big":
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"x" * 3000)
        elif action == "slow":
            self.send_response(200)
            self.end_headers()
            for _ in range(50):
                self.wfile.write(b"x")
                time.sleep(0.05)
        elif action == "picture":
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"a picture")
        else:
            self.send_error(404)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """A server that stands for every public host; yields the requests it got."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Site)
    server.seen = []  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, args=[POLL_SECONDS], daemon=True).start()
    resolve = public_address

    def stand_in(host: str, port: int) -> tuple[str, int]:
        return resolve(host, port) if host[0].isdigit() else ("127.0.0.1", server.server_port)

    monkeypatch.setattr(fetching, "public_address", stand_in)
    yield server.seen  # type: ignore[attr-defined]
    server.shutdown()
    server.server_close()


def test_an_allowed_host_is_asked_by_its_name(site: list[Any]) -> None:
    assert fetch("http://img.example.org/picture?size=2", ["*.example.org"]) == b"a picture"
    ((host, path),) = site
    assert host.startswith("img.example.org")
    assert path == "/picture?size=2"


@pytest.mark.parametrize("hosts", [(), ["example.com"], ["*.example.com"], ["ample.org"], ["*.img.example.org"]])
def test_other_hosts_are_not(site: list[Any], hosts: Any) -> None:
    with pytest.raises(InvalidImage, match=r"'img\.example\.org' are not fetched"):
        fetch("http://img.example.org/picture", hosts)
    assert site == []


def test_redirects_are_followed_and_checked_like_first_addresses(site: list[Any]) -> None:
    assert fetch("http://a.org/to/http://b.org/picture", ["*"]) == b"a picture"
    assert fetch("http://a.org/to//picture", ["a.org"]) == b"a picture"
    with pytest.raises(InvalidImage, match=r"'b\.org' are not fetched"):
        fetch("http://a.org/to/http://b.org/picture", ["a.org"])
    with pytest.raises(InvalidImage, match=r"has the address 169\.254\.169\.254, which is not a public one"):
        fetch("http://a.org/to/http://169.254.169.254/picture", ["*"])
    with pytest.raises(InvalidImage, match="not an http or https address"):
        fetch("http://a.org/to/file:///etc/hostname", ["*"])
    with pytest.raises(InvalidImage, match="redirects more than 3 times"):
        fetch("http://a.org/to//to//to//to//picture", ["*"])


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.1.2.3",
        "192.168.0.1",
        "172.16.0.1",
        "169.254.169.254",
        "100.64.0.1",
        "0.0.0.0",
        "224.0.0.1",
        "::1",
        "fe80::1",
        "fc00::1",
        "::ffff:127.0.0.1",
        "2002:7f00:1::",
        "64:ff9b::a00:1",
    ],
)
def test_only_public_addresses_are_connected_to(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET

    def resolved(*_: Any, **__: Any) -> list[Any]:
        return [(socket.AF_INET, 1, 6, "", ("93.184.215.14", 80)), (family, 1, 6, "", (address, 80))]

    monkeypatch.setattr(socket, "getaddrinfo", resolved)
    with pytest.raises(InvalidImage, match="which is not a public one"):
        fetch("https://rebinding.example.org/cat.png", ["*"])


def test_the_checked_address_is_the_one_connected_to(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([[(socket.AF_INET, 1, 6, "", ("93.184.215.14", 80))], AssertionError("resolved twice")])
    connected: list[Any] = []

    def connect(address: Any, *_: Any, **__: Any) -> Any:
        connected.append(address)
        raise OSError("no network here")

    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: next(answers))
    monkeypatch.setattr(socket, "create_connection", connect)
    with pytest.raises(InvalidImage, match="cannot be fetched: no network here"):
        fetch("http://example.org/cat.png", ["*"])
    assert connected == [("93.184.215.14", 80)]


def test_size_and_time_are_limited(site: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "MAX_BYTES", 2000)
    with pytest.raises(InvalidImage, match="is larger than"):
        fetch("http://a.org/big", ["*"])
    monkeypatch.setattr(fetching, "MAX_SECONDS", 0.5)
    begun = time.perf_counter()
    with pytest.raises(InvalidImage, match="it takes longer than"):
        fetch("http://a.org/slow", ["*"])
    assert time.perf_counter() - begun < 2


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://a.org:8080/picture", "names the port 8080"),
        ("http://a.org/gone", "the server answers 404"),
        ("http:///picture", "not an http or https address"),
        ("http://[::1/picture", "is not a web address"),
    ],
)
def test_other_addresses_are_refused(site: list[Any], url: str, reason: str) -> None:
    with pytest.raises(InvalidImage, match=reason):
        fetch(url, ["*"])


def test_the_models_list_of_hosts_decides(site: list[Any]) -> None:
    question = [HumanMessage([{"type": "image", "url": "http://a.org/gone.png"}, {"type": "text", "text": "What?"}])]
    closed = ChatTOPSLlava(model="mini", device="cpu")
    with pytest.raises(InvalidImage, match="Set allowed_image_hosts"):
        closed.invoke(question)
    assert site == []
    with pytest.raises(InvalidImage, match="the server answers 404"):
        ChatTOPSLlava(model="mini", device="cpu", allowed_image_hosts=["a.org"]).invoke(question)
