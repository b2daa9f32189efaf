"""Test servers that behave wrongly, over real sockets."""

import asyncio
import gc
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from tests.support.chat_server import POLL_SECONDS, ChatServer
from tops_engine.conversation.messages import user_message
from tops_engine.errors import InvalidInput, ServerError
from tops_engine.remote import RemoteEngine
from tops_engine.remote.pruning import read_metrics
from tops_engine.settings import Pruning

QUESTION = [user_message("What number is written?")]

TEXTS: dict[str, Any] = {"role": "assistant", "content": [{"type": "text", "text": "5"}]}


def completion(**fields: Any) -> str:
    message = {"role": "assistant", "content": "5"}
    whole = {"id": "1", "object": "chat.completion", "created": 1, "model": "m"}
    return json.dumps(whole | {"choices": [{"index": 0, "finish_reason": "stop", "message": message}]} | fields)


@contextmanager
def answering(body: str, content_type: str = "application/json", status: int = 200, **headers: str) -> Iterator[Any]:
    """Run a server that always answers with this body; ``asked`` are the paths of the requests."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._send(200, "application/json", '{"object": "list", "data": [{"id": "m", "object": "model"}]}')

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            server.asked.append(self.path)
            self._send(status, content_type, body, **headers)

        def _send(self, status: int, content_type: str, body: str, **headers: str) -> None:
            self.send_response(status)
            for name, value in {"Content-Type": content_type, "Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_: Any) -> None:
            pass

    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.asked = []
    server.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, args=[POLL_SECONDS])
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        ("<html>Welcome</html>", "text/html"),
        ("{half", "application/json"),
        ("null", "application/json"),
        ("[1, 2]", "application/json"),
        ('{"id": "1"}', "application/json"),
        (completion(choices=[{"index": 0, "finish_reason": "stop", "message": TEXTS}]), "application/json"),
        (completion(usage={"prompt_tokens": "many"}), "application/json"),
        ("data: {half\n\n", "text/event-stream"),
    ],
)
def test_what_is_no_answer_is_an_error_of_the_engine(body: str, content_type: str) -> None:
    with answering(body, content_type) as server:
        remote = RemoteEngine(server.url, max_retries=0)
        ask: Any = remote.stream if content_type == "text/event-stream" else lambda asked: iter([remote.chat(asked)])
        with pytest.raises(ServerError, match="does not speak OpenAI's protocol"):
            list(ask(QUESTION))
        remote.close()


def test_pictures_are_not_sent_on() -> None:
    with answering(completion()) as other, answering("", status=307, Location=f"{other.url}/chat") as server:
        remote = RemoteEngine(server.url, max_retries=0)
        with pytest.raises(ServerError, match=rf"redirects to {other.url}/chat; .* give that address\.$"):
            remote.chat(QUESTION)
        remote.close()
        assert (len(server.asked), other.asked) == (1, [])


@pytest.mark.parametrize("address", ["http://me:secret@host/v1", "http://host/v1?key=secret", "http://host/v1#secret"])
def test_an_address_holds_no_secret(address: str) -> None:
    with pytest.raises(InvalidInput, match="TOPS_API_KEY") as caught:
        RemoteEngine(address)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("address", ["http://[::1", "http://host:99999", "http://host:0", "http://host:port"])
def test_addresses_that_cannot_be(address: str) -> None:
    with pytest.raises(InvalidInput, match="not an address of a server"):
        RemoteEngine(address)


@pytest.mark.parametrize("labels", ['keep="much"', 'keep="0.5",method="new"', 'keep="0.5",method="tops",raters="x"'])
def test_pruning_that_is_not_known(labels: str) -> None:
    assert read_metrics(f"tops_pruning_info{{{labels}}} 1.0\n") is None


@pytest.mark.parametrize("name", ["recipe", "self", "device"])
def test_a_server_sets_the_pruning_and_nothing_else(name: str) -> None:
    labels = f'keep="0.5",method="tops",stages="first",{name}="/etc/passwd"'
    assert read_metrics(f"tops_pruning_info{{{labels}}} 1.0\n") == Pruning(keep=0.5, stages="first")


def test_more_than_the_server_keeps_is_refused_before_anything_is_sent(
    server: ChatServer, remote: RemoteEngine
) -> None:
    with pytest.raises(InvalidInput, match=r"keeps 0\.5 at most, .* --keep 0\.75\.$"):
        remote.connect(Pruning(keep=0.75))
    with pytest.raises(InvalidInput, match=r"keeps 0\.5 at most"):
        remote.chat(QUESTION, Pruning(keep=0.75))
    assert server.requests == []


def test_a_loop_that_ended_leaves_no_trace_in_the_next(server: ChatServer) -> None:
    remote = RemoteEngine(server.url)
    complaints: list[dict[str, Any]] = []

    async def ask() -> str:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
        answer = await remote.achat(QUESTION)
        gc.collect()
        await asyncio.sleep(0.01)
        return answer.text

    assert asyncio.run(ask()) == asyncio.run(ask())
    assert complaints == []
