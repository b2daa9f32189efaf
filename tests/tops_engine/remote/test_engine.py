"""Test the client over real sockets: a remote answer equals the local one."""

import asyncio
import http.server
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.support.chat_server import POLL_SECONDS, ChatServer, until
from tests.tops_engine.remote.conftest import PRUNING, SAMPLE
from tops_engine.conversation.messages import user_message, video_message
from tops_engine.conversation.tools import Tools
from tops_engine.engine import Engine
from tops_engine.errors import (
    ContextLengthError,
    InvalidImage,
    InvalidInput,
    MissingDependency,
    ModelNotFound,
    ServerError,
    ServerTimeout,
)
from tops_engine.remote import RemoteAnswer, RemoteEngine
from tops_engine.settings import Generation, Pruning

QUESTION = [user_message("What number is written?", SAMPLE)]
DESCRIBE = [user_message("Describe the picture.", SAMPLE)]
# An answer that does not end by itself.
ENDLESS = Generation(max_tokens=4000, json_schema='{"type": "array", "minItems": 900, "items": {"type": "integer"}}')

SETTINGS = [
    Generation(),
    Generation(max_tokens=3),
    Generation(stop=("star", ", digit")),
    Generation(temperature=1.5, top_p=0.9, top_k=20, seed=5),
    Generation(repetition_penalty=1.4),
    Generation(json_schema='{"type": "object", "properties": {"digit": {"type": "integer", "maximum": 9}}}'),
]


@pytest.mark.parametrize("generation", SETTINGS)
def test_a_remote_answer_is_the_local_one(mini: Engine, remote: RemoteEngine, generation: Generation) -> None:
    for messages in (
        QUESTION,
        DESCRIBE,
        [*DESCRIBE, {"role": "assistant", "content": "A star."}, user_message("Why?")],
    ):
        local = mini.chat(messages, PRUNING, generation)
        answer = remote.chat(messages, generation=generation)
        assert (answer.text, answer.finish_reason) == (local.text, local.finish_reason)
        assert answer.usage is not None
        assert answer.usage.input_tokens == local.usage.prompt_tokens - 72
        assert answer.usage.completion_tokens == local.usage.completion_tokens
        assert answer.usage.visual_tokens == 72
        *pieces, last = remote.stream(messages, generation=generation)
        assert "".join(map(str, pieces)) == local.text
        assert isinstance(last, RemoteAnswer)
        assert last.text == local.text
        assert last.timings.first_token is not None
        assert 0 < last.timings.first_token <= last.timings.total


def test_a_begun_answer_is_continued(mini: Engine, remote: RemoteEngine, server: ChatServer) -> None:
    whole = mini.chat(DESCRIBE, PRUNING).text
    begun = whole[: whole.index(",")]
    messages = [*DESCRIBE, {"role": "assistant", "content": begun}]
    local = mini.chat(messages, PRUNING)
    assert begun + local.text == whole
    answer = remote.chat(messages)
    assert answer.text == local.text
    assert server.requests[-1]["continue_final_message"] is True
    assert server.requests[-1]["add_generation_prompt"] is False
    assert "".join(map(str, list(remote.stream(messages))[:-1])) == local.text
    assert remote.count_tokens(messages) == local.usage.input_tokens
    remote.chat(DESCRIBE)
    assert "continue_final_message" not in server.requests[-1]


def test_tools(mini: Engine, remote: RemoteEngine) -> None:
    look = {"name": "look", "parameters": {"type": "object", "properties": {"where": {"enum": ["left", "right"]}}}}
    wait: dict[str, Any] = {"name": "wait", "parameters": {"type": "object", "properties": {}}}
    functions = [{"type": "function", "function": function} for function in (look, wait)]
    for choice in ("required", "wait", "none", "auto"):
        tools = Tools(functions, choice, parallel=False)
        local = mini.chat(QUESTION, PRUNING, tools=tools)
        answer = remote.chat(QUESTION, tools=tools)
        assert (answer.text, answer.tool_calls) == (local.text, local.tool_calls)
        *_, last = remote.stream(QUESTION, tools=tools)
        assert isinstance(last, RemoteAnswer)
        assert last.tool_calls == local.tool_calls
    call = {"id": None, "type": "function", "function": {"name": "look", "arguments": {"where": "left"}}}
    result = [{"type": "text", "text": "Here."}, {"type": "image", "image": SAMPLE}]
    history = [*QUESTION, {"role": "assistant", "tool_calls": [call]}, {"role": "tool", "content": result}]
    answer = remote.chat(history)
    assert answer.text == mini.chat(history, PRUNING).text
    assert answer.usage is not None
    assert answer.usage.visual_tokens == 144


def test_a_call_that_was_cut_is_no_call(remote: RemoteEngine) -> None:
    function = {"name": "say", "parameters": {"type": "object", "properties": {"text": {"type": "string"}}}}
    tools = Tools([{"type": "function", "function": function | {"required": ["text"]}}], "required")
    answer = remote.chat(QUESTION, generation=Generation(max_tokens=12), tools=tools)
    assert answer.finish_reason == "length"
    assert not answer.tool_calls
    assert answer.invalid_tool_calls[0].error == "The call was cut off."


def test_a_batch_is_bounded_and_in_order(mini: Engine, server: ChatServer) -> None:
    texts = ["What number is written?", "Describe the picture.", "What colour is the circle?", "Hello"]
    conversations = [[user_message(text, SAMPLE)] for text in texts] * 6
    engine = RemoteEngine(server.url, max_concurrency=5)
    server.delay = 0.2
    answers = engine.batch(conversations)
    expected = [mini.chat(messages, PRUNING).text for messages in conversations[:4]] * 6
    assert [answer.text for answer in answers] == expected
    assert server.most_at_once == 5
    assert engine.batch([]) == []
    engine.close()


def test_an_error_in_a_batch_ends_the_others(server: ChatServer, remote: RemoteEngine) -> None:
    with pytest.raises(InvalidInput, match="prompt is empty"):
        remote.batch([DESCRIBE, [user_message("")]], generation=ENDLESS)
    until(lambda: server.num_abandoned == len(server.requests))


def test_cancelling_returns_what_there_is(server: ChatServer, remote: RemoteEngine) -> None:
    cancel = threading.Event()
    pieces = []
    for piece in remote.stream(DESCRIBE, generation=ENDLESS, cancel=cancel):
        pieces.append(piece)
        if len(pieces) == 3:
            cancel.set()
    answer = pieces[-1]
    assert isinstance(answer, RemoteAnswer)
    assert answer.finish_reason == "cancelled"
    assert answer.text == "".join(map(str, pieces[:-1]))
    until(lambda: server.num_abandoned == 1)
    assert remote.chat(DESCRIBE, cancel=cancel).text == ""


def test_cancelling_does_not_wait_for_the_server(server: ChatServer, remote: RemoteEngine) -> None:
    server.delay = 30
    cancel = threading.Event()
    threading.Timer(0.2, cancel.set).start()
    begun = time.perf_counter()
    (answer,) = remote.batch([QUESTION], cancel=cancel)
    assert time.perf_counter() - begun < 5
    assert (answer.text, answer.finish_reason, answer.usage) == ("", "cancelled", None)


def test_a_stream_that_nobody_reads_stops_the_server(server: ChatServer, remote: RemoteEngine) -> None:
    stream: Any = remote.stream(DESCRIBE, generation=ENDLESS)
    next(stream)
    stream.close()
    until(lambda: server.num_abandoned == 1)


def test_an_interrupt_stops_the_request(server: ChatServer) -> None:
    code = f"""
import signal
from tops_engine.conversation.messages import user_message
from tops_engine.remote import RemoteEngine
signal.signal(signal.SIGINT, signal.default_int_handler)
try:
    RemoteEngine({server.url!r}).chat([user_message("Hello")])
except KeyboardInterrupt:
    print("interrupted")
"""
    server.delay = 60
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        until(lambda: server.requests)
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=20)[0] == "interrupted\n"
    until(lambda: server.num_abandoned == 1)


async def test_native_asynchronous_forms(mini: Engine, server: ChatServer, remote: RemoteEngine) -> None:
    server.delay = 60
    threads = threading.active_count()
    asking = asyncio.gather(*(remote.achat(QUESTION) for _ in range(40)))
    await asyncio.to_thread(until, lambda: server.most_at_once == 40)
    assert threading.active_count() - threads < 30, "pictures are read by few threads, requests need none"
    server.delay = 0
    assert {answer.text for answer in await asking} == {mini.chat(QUESTION, PRUNING).text}
    pieces = [piece async for piece in remote.astream(DESCRIBE)]
    assert "".join(map(str, pieces[:-1])) == mini.chat(DESCRIBE, PRUNING).text
    await remote.aclose()


def test_event_loops_may_come_and_go(remote: RemoteEngine) -> None:
    for _ in range(3):
        assert asyncio.run(remote.achat(QUESTION)).text == "5"
    assert remote.chat(QUESTION).text == "5"


async def test_a_cancelled_task_stops_the_server(server: ChatServer, remote: RemoteEngine) -> None:
    task = asyncio.create_task(remote.achat(DESCRIBE, generation=ENDLESS))
    await asyncio.to_thread(until, lambda: server.requests)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.to_thread(until, lambda: server.num_abandoned)
    await remote.aclose()


def test_pictures_are_sent_as_they_came(server: ChatServer, remote: RemoteEngine) -> None:
    import base64

    remote.chat(QUESTION)
    (part, _) = server.requests[0]["messages"][0]["content"]
    header, _, data = part["image_url"]["url"].partition(",")
    assert header == "data:image/jpeg;base64"
    assert base64.b64decode(data) == SAMPLE.read_bytes()


def test_the_servers_only_model_is_taken(mini: Engine, remote: RemoteEngine) -> None:
    assert remote.chat(QUESTION).model == "mini"
    with ChatServer(mini, PRUNING, models=("one", "two")).running() as server:
        with pytest.raises(InvalidInput, match=r"Say which model to ask at .*; there are: one, two\."):
            RemoteEngine(server.url).chat(QUESTION)
        assert RemoteEngine(server.url, model="two").chat(QUESTION).model == "two"
        with pytest.raises(ModelNotFound, match=r"The server has no model 'three'; it has one, two\."):
            RemoteEngine(server.url, model="three").chat(QUESTION)


def test_what_cannot_be_asked(remote: RemoteEngine, server: ChatServer) -> None:
    with pytest.raises(InvalidImage, match="There is no picture at nowhere"):
        remote.chat([user_message("What?", "nowhere.png")])
    with pytest.raises(InvalidImage, match="damaged or cut off"):
        remote.chat([user_message("What?", SAMPLE.read_bytes()[:3000])])
    with pytest.raises(InvalidInput, match="send some of its frames as pictures"):
        remote.chat([video_message("What?", "clip.mp4")])
    assert not server.requests
    with pytest.raises(ContextLengthError, match="too long for the server"):
        remote.chat([user_message("word " * 9000)])
    with pytest.raises(InvalidInput, match=r"The server refuses the request: .*Invalid type: strange\."):
        remote.chat(QUESTION, generation=Generation(json_schema='{"type": "strange"}'))


def test_a_request_may_keep_less_than_the_server(mini: Engine, server: ChatServer, remote: RemoteEngine) -> None:
    for pruning in (Pruning(keep=0.25), Pruning(method="tops", keep=36), Pruning(keep=0.25, stages="first")):
        answer = remote.chat(QUESTION, pruning, Generation(top_k=3, temperature=1, seed=1))
        local = mini.chat(QUESTION, Pruning(keep=0.25, stages="first"), Generation(top_k=3, temperature=1, seed=1))
        assert answer.text == local.text
        assert answer.usage is not None
        assert answer.usage.visual_tokens == 36
        assert answer.pruning is not None
        assert (answer.pruning["keep"], answer.pruning["stages"]) == (pruning.keep, "first")
    remote.chat(QUESTION, PRUNING)
    assert "mm_processor_kwargs" not in server.requests[-1], "what the server does anyway needs no permission"


@pytest.mark.parametrize(
    ("pruning", "sentence"),
    [
        (Pruning(method="divprune", keep=0.2), r"prunes by tops:stages=first.* cannot prune by divprune\."),
        (Pruning(keep=0.2, alpha=0.3), r"cannot prune by tops:alpha=0\.3\."),
        (Pruning(keep=0.2, merge=True), r"cannot prune by tops:merge=true\."),
        (Pruning(schedule="0:64,4:16"), "takes no schedule"),
        (Pruning(keep=0.2, positions="original"), "no original positions"),
        (Pruning(keep=0.2, allocation="coverage"), "leave out allocation and budget_per"),
        (Pruning(keep=0.2, tower_keep=0.5), "leave out dedup, tower_keep and tower_layer"),
    ],
)
def test_a_pruning_the_server_does_not_follow(remote: RemoteEngine, pruning: Pruning, sentence: str) -> None:
    with pytest.raises(InvalidInput, match=sentence):
        remote.chat(QUESTION, pruning)


@pytest.mark.parametrize(
    ("keep", "pruning", "sent"),
    [
        (0.25, None, 0.25),
        (0.25, Pruning(keep=0.125), 0.25),
        ([0.25, None], None, [0.25, 0.5]),
        ([0.25, None], Pruning(keep=0.125), [0.25, 0.125]),
        ([36, 0.5], None, [36, 0.5]),
    ],
)
def test_pictures_may_have_budgets_of_their_own(
    mini: Engine, server: ChatServer, remote: RemoteEngine, keep: Any, pruning: Pruning | None, sent: Any
) -> None:
    message = user_message("What differs?", SAMPLE, SAMPLE, keep=keep)
    answer = remote.chat([message], pruning)
    assert server.requests[-1]["mm_processor_kwargs"] == {"tops_keep": sent}
    common = Pruning(keep=pruning.keep if pruning else 0.5, stages="first")
    local = mini.chat([message], common)
    assert answer.text == local.text
    assert answer.usage is not None
    assert answer.usage.visual_tokens == local.usage.input_visual_tokens


def test_a_picture_keeps_no_more_than_the_server(server: ChatServer, remote: RemoteEngine) -> None:
    with pytest.raises(InvalidInput, match=r"keeps 0\.5 at most, .* --keep 0\.75"):
        remote.chat([user_message("What differs?", SAMPLE, SAMPLE, keep=[0.25, 0.75])])
    remote.chat([user_message("What differs?", SAMPLE, SAMPLE, keep=[0.5, None])])
    assert "mm_processor_kwargs" not in server.requests[-1]


def test_servers_that_prune_nothing_or_do_not_say(monkeypatch: pytest.MonkeyPatch, mini: Engine) -> None:
    with ChatServer(mini, Pruning(method="none", keep=1.0)).running() as server:
        remote = RemoteEngine(server.url)
        assert remote.chat(QUESTION, Pruning(keep=1.0)).text == remote.chat(QUESTION).text
        with pytest.raises(InvalidInput, match=r"prunes nothing; serve the model by `tops serve MODEL --keep 0\.2`"):
            remote.chat(QUESTION, Pruning(keep=0.2))
    monkeypatch.setattr(ChatServer, "_metrics", ChatServer._models)
    with ChatServer(mini, PRUNING).running() as server, pytest.raises(InvalidInput, match="does not state what it"):
        RemoteEngine(server.url).chat(QUESTION, Pruning(keep=0.2))


def test_tokens_are_counted_by_the_server(mini: Engine, remote: RemoteEngine) -> None:
    assert remote.tokenize("What number?") == mini.family.tokenizer.encode("What number?", add_special_tokens=False)
    usage = remote.chat(DESCRIBE).usage
    assert usage is not None
    assert remote.count_tokens(DESCRIBE) == usage.input_tokens


def test_servers_that_fail(mini: Engine, server: ChatServer, remote: RemoteEngine) -> None:
    server.failures = [500, 503]
    with pytest.raises(ServerError, match=r"failed \(500\): It went wrong\."):
        remote.chat(QUESTION)
    patient = RemoteEngine(server.url, max_retries=2)
    assert patient.chat(QUESTION).text == "5"
    server.failures = [429]
    with pytest.raises(ServerError, match="too busy"):
        remote.chat(QUESTION)
    server.delay = 20
    with pytest.raises(ServerTimeout, match=r"did not answer within 0\.2 seconds"):
        RemoteEngine(server.url, timeout=0.2, max_retries=0).chat(QUESTION)
    with ChatServer(mini, PRUNING, key="secret").running() as guarded:
        with pytest.raises(ServerError, match="refuses the API key"):
            RemoteEngine(guarded.url, api_key="wrong").chat(QUESTION)
        with pytest.raises(ServerError, match="refuses the API key"):
            RemoteEngine(guarded.url).chat(QUESTION)
        assert RemoteEngine(guarded.url, api_key="secret").chat(QUESTION).text == "5"


def test_servers_that_are_none(tmp_path: Any) -> None:
    with pytest.raises(ServerError, match=r"No server answers at http://127\.0\.0\.1:\d+/v1 .* `tops serve MODEL`"):
        RemoteEngine(f"http://127.0.0.1:{_free_port()}", max_retries=0).chat(QUESTION)
    (tmp_path / "v1").mkdir()
    (tmp_path / "v1" / "models").write_text("<html>A page</html>")
    with _files_at(tmp_path) as url:
        for path in ("", "/elsewhere"):
            with pytest.raises(ServerError, match="does not speak OpenAI's protocol"):
                RemoteEngine(url + path, max_retries=0).chat(QUESTION)
    for address in ("", "localhost:8000", "ftp://host/v1", "file:///etc/passwd", "http://"):
        with pytest.raises(InvalidInput, match="not an address of a server"):
            RemoteEngine(address)


def test_a_server_that_breaks_off(server: ChatServer, remote: RemoteEngine) -> None:
    stream = remote.stream(DESCRIBE, generation=ENDLESS)
    next(stream)
    server.breaks_off = True
    with pytest.raises(ServerError, match="broke"):
        list(stream)


@pytest.mark.parametrize("options", [{"timeout": 0}, {"max_retries": -1}, {"max_concurrency": 0}])
def test_options_out_of_range(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match="is not allowed"):
        RemoteEngine("http://host:8000/v1", **options)


def test_the_environments_openai_is_not_this_servers(
    monkeypatch: pytest.MonkeyPatch, mini: Engine, remote: RemoteEngine
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:1/v1")
    monkeypatch.setenv("OPENAI_ORG_ID", "secret")
    with ChatServer(mini, PRUNING, key="secret").running() as guarded, pytest.raises(ServerError, match="refuses"):
        RemoteEngine(guarded.url).chat(QUESTION)
    assert remote.chat(QUESTION).text == "5"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks are Unix")
def test_a_forked_process_asks_as_well(server: ChatServer) -> None:
    code = f"""
import os
from tops_engine.conversation.messages import user_message
from tops_engine.remote import RemoteEngine
engine = RemoteEngine({server.url!r}, timeout=10)
print(engine.chat([user_message("Hello")]).text, flush=True)
if os.fork() == 0:
    print(engine.chat([user_message("Hello")]).text, flush=True)
    os._exit(0)
os.wait()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=50)
    first, second = done.stdout.splitlines()
    assert first == second


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(MissingDependency, match=r"pip install 'openai>=2'"):
        RemoteEngine("http://host:8000/v1")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def _files_at(folder: Any) -> Iterator[str]:
    def handler(*args: Any) -> http.server.BaseHTTPRequestHandler:
        return http.server.SimpleHTTPRequestHandler(*args, directory=folder)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=[POLL_SECONDS], daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
