"""A hub over real sockets that serves one checkpoint, and ports where no hub answers."""

import hashlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BufferedIOBase
from pathlib import Path

import pytest
from huggingface_hub import constants

#: The commit of everything that :class:`HubServer` serves.
COMMIT = "0123456789abcdef0123456789abcdef01234567"


#: Bytes from which a file is large, and of a piece of one.
LARGE, BLOCK = 2**20, 2**16


class HubServer:
    """Serves the files of a folder as those of every model name, at ``url`` inside :meth:`running`.

    Attributes
    ----------
    delay : seconds before the next answer, which sets it back to 0.
    rate : bytes a second of large files; 0 sends them at once.
    cut_after : bytes of a large file after which the next connection is cut, which sets it back to None.
    status : of the answer to requests for the list of files.
    requests : the paths of all requests.
    sent : bytes of large files that were sent.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.delay = self.rate = 0.0
        self.cut_after: int | None = None
        self.status = 200
        self.requests: list[str] = []
        self.sent = 0
        self.url = ""

    @contextmanager
    def running(self) -> Iterator["HubServer"]:
        with ThreadingHTTPServer(("127.0.0.1", 0), self._handler()) as server:
            self.url = f"http://127.0.0.1:{server.server_port}"
            thread = threading.Thread(target=server.serve_forever)
            thread.start()
            try:
                yield self
            finally:
                server.shutdown()
                thread.join()

    def send(self, connection: BufferedIOBase, content: bytes) -> None:
        """Send a file: a large one slowly, or only its beginning, if this server is to be so."""
        if len(content) < LARGE:
            connection.write(content)
            return
        cut, self.cut_after = self.cut_after, None
        for begin in range(0, len(content), BLOCK):
            block = content[begin : begin + BLOCK]
            if cut is not None and begin >= cut:
                raise ConnectionAbortedError
            connection.write(block)
            self.sent += len(block)
            if self.rate:
                time.sleep(len(block) / self.rate)

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self._answer()

            def do_GET(self) -> None:
                if self.path.startswith("/api/models/") and "/tree/" not in self.path:
                    hub.requests.append(self.path)
                    self._list()
                    return
                content = self._answer()
                if content is not None:
                    hub.send(self.wfile, content)

            def _list(self) -> None:
                files = sorted(path for path in hub.folder.rglob("*") if path.is_file())
                siblings = [
                    {"rfilename": path.relative_to(hub.folder).as_posix(), "size": path.stat().st_size}
                    for path in files
                ]
                body = json.dumps({"id": "someone/model", "sha": COMMIT, "siblings": siblings}).encode()
                self.send_response(hub.status)
                if hub.status != 200:
                    self.send_header("X-Error-Code", "GatedRepo" if hub.status == 403 else "RepoNotFound")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

            def _answer(self) -> bytes | None:
                hub.requests.append(self.path)
                delay, hub.delay = hub.delay, 0.0
                time.sleep(delay)
                path = hub.folder / self.path.partition("/resolve/")[2].partition("/")[2]
                content = whole = path.read_bytes() if path.is_file() else None
                begin = int(self.headers.get("Range", "bytes=0-")[len("bytes=") :].partition("-")[0])
                if begin and content is not None:
                    content = content[begin:]
                self.send_response(404 if content is None else 206 if begin else 200)
                if begin and whole is not None:
                    self.send_header("Content-Range", f"bytes {begin}-{len(whole) - 1}/{len(whole)}")
                self.send_header("X-Repo-Commit", COMMIT)
                if content is None:
                    self.send_header("X-Error-Code", "EntryNotFound")
                else:
                    self.send_header("ETag", f'"{hashlib.sha256(whole or b"").hexdigest()}"')
                self.send_header("Content-Length", str(len(content or b"")))
                self.end_headers()
                return content

        return Handler


def use_hub(monkeypatch: pytest.MonkeyPatch, url: str, cache: Path) -> None:
    """Set the address of the hub, as HF_ENDPOINT does, and the folder of its cache."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "ENDPOINT", url)
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


@contextmanager
def refusing_port() -> Iterator[int]:
    """Yield a port that refuses connections."""
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        yield reserved.getsockname()[1]


@contextmanager
def silent_port() -> Iterator[int]:
    """Yield a port that accepts connections and answers nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@contextmanager
def dropping_port() -> Iterator[int]:
    """Yield a port where connections are never accepted, as behind a firewall that drops packets."""
    with ExitStack() as stack:
        server = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(4):  # they fill the queue of connections that wait to be accepted
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(server.getsockname())
        yield server.getsockname()[1]
