"""A hub over real sockets that serves one checkpoint, and ports where no hub answers."""

import hashlib
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

#: The commit of everything that :class:`HubServer` serves.
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class HubServer:
    """Serves the files of a folder as those of every model name, at ``url`` inside :meth:`running`.

    Attributes
    ----------
    delay : seconds before the next answer, which sets it back to 0.
    requests : the paths of all requests.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.delay = 0.0
        self.requests: list[str] = []
        self.url = ""

    @contextmanager
    def running(self) -> Iterator["HubServer"]:
        with ThreadingHTTPServer(("127.0.0.1", 0), self._handler()) as server:
            self.url = f"http://127.0.0.1:{server.server_port}"
            thread = threading.Thread(target=server.serve_forever)
            thread.start()
            yield self
            server.shutdown()
            thread.join()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self._answer()

            def do_GET(self) -> None:
                content = self._answer()
                if content is not None:
                    self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                pass

            def _answer(self) -> bytes | None:
                hub.requests.append(self.path)
                delay, hub.delay = hub.delay, 0.0
                time.sleep(delay)
                path = hub.folder / self.path.partition("/resolve/")[2].partition("/")[2]
                content = path.read_bytes() if path.is_file() else None
                self.send_response(200 if content is not None else 404)
                self.send_header("X-Repo-Commit", COMMIT)
                if content is None:
                    self.send_header("X-Error-Code", "EntryNotFound")
                else:
                    self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
                self.send_header("Content-Length", str(len(content or b"")))
                self.end_headers()
                return content

        return Handler


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
