"""Test many requests to a server over real sockets: their limit, retries, and cancellation when the reader stops."""

import asyncio
import base64
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from tests.conftest import Picture as MakePicture
from tests.support.chat_server import ChatServer
from tops_engine.captioning import in_flight
from tops_engine.captioning.asking import Picture, Question
from tops_engine.captioning.in_flight import MOST_FAILURES, caption_in_flight
from tops_engine.conversation.messages import user_message
from tops_engine.engine import Engine
from tops_engine.errors import InvalidInput, ServerError
from tops_engine.media.images import image_file
from tops_engine.remote import RemoteEngine
from tops_engine.settings import Generation, Pruning

QUESTION = Question("What is this?", None, Generation(max_tokens=3))
PRUNING = Pruning(keep=0.5, stages="first")


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(in_flight, "FIRST_PAUSE", 0.05)
    monkeypatch.setattr(in_flight, "LONGEST_PAUSE", 0.1)


@pytest.fixture
def server(llava_engine: Engine) -> Iterator[ChatServer]:
    with ChatServer(llava_engine, PRUNING).running() as server:
        yield server


@pytest.fixture
def remote(server: ChatServer) -> Iterator[RemoteEngine]:
    engine = RemoteEngine(server.url, max_retries=0, timeout=60)
    yield engine
    engine.close()


@pytest.fixture
def pictures(tmp_path: Path, picture: MakePicture) -> list[Picture]:
    paths = [tmp_path / f"{number:02}.png" for number in range(12)]
    for number, path in enumerate(paths):
        picture(56, 56, number).save(path)
    return [Picture(path.name, path) for path in paths]


def test_answers_are_those_of_single_questions_and_requests_are_bounded(
    llava_engine: Engine, server: ChatServer, remote: RemoteEngine, pictures: list[Picture]
) -> None:
    server.delay = 0.05
    drawn = 0

    def turns() -> Iterator[Picture]:
        nonlocal drawn
        for picture in pictures:
            drawn += 1
            yield picture

    found = {}
    for given, one in enumerate(caption_in_flight(remote, turns(), QUESTION, 5)):
        assert drawn <= given + 5
        found[one.name] = one.caption
    assert server.most_at_once == 5
    expected = {
        picture.name: llava_engine.chat(
            [user_message(QUESTION.prompt, picture.source)], PRUNING, QUESTION.generation
        ).text
        for picture in pictures
    }
    assert found == {name: " ".join(text.split()) for name, text in expected.items()}


def test_a_bad_picture_fails_alone(remote: RemoteEngine, pictures: list[Picture], tmp_path: Path) -> None:
    (tmp_path / "03.png").write_bytes(b"broken")
    found = {one.name: one for one in caption_in_flight(remote, pictures, QUESTION, 4)}
    assert len(found) == 12
    assert [name for name, one in found.items() if one.error] == ["03.png"]


def test_a_server_that_restarts_is_waited_for(llava_engine: Engine, pictures: list[Picture]) -> None:
    server = ChatServer(llava_engine, PRUNING)
    said: list[str] = []
    with server.running():
        remote = RemoteEngine(server.url, max_retries=0)
        answers = caption_in_flight(remote, pictures, QUESTION, 4, patience=30, say=said.append)
        names = [next(answers).name for _ in range(3)]
        server.delay = 10  # whoever is asked about next gets no answer any more

        def restart() -> None:
            time.sleep(0.7)
            server.delay = 0
            with server.running():
                finished.wait()

        finished = threading.Event()
        restarting = threading.Thread(target=restart)
    restarting.start()
    names += [one.name for one in answers]
    finished.set()
    restarting.join()
    assert sorted(names) == [picture.name for picture in pictures]
    assert len(said) == 2
    assert said[0].endswith("Waiting for it, for up to 30 seconds.")
    assert said[1] == "The server answers again."


def test_patience_has_an_end(llava_engine: Engine, pictures: list[Picture]) -> None:
    with ChatServer(llava_engine, PRUNING).running() as server:
        remote = RemoteEngine(server.url, max_retries=0)
        server.failures = [503]
        with pytest.raises(ServerError, match="503"):
            list(caption_in_flight(remote, pictures, QUESTION, 4))
        answers = caption_in_flight(remote, pictures, QUESTION, 2, patience=0.5)
        next(answers)
    begun = time.monotonic()
    with pytest.raises(ServerError, match="No server answers"):
        list(answers)
    assert 0.5 < time.monotonic() - begun < 5
    remote.close()


def test_a_picture_that_the_server_fails_on_fails_alone(llava_engine: Engine, pictures: list[Picture]) -> None:
    sick = base64.b64encode(image_file(pictures[2].source)[0]).decode()

    class Sick(ChatServer):
        async def _answered(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
            if sick in json.dumps(body):
                raise web.HTTPInternalServerError
            return await super()._answered(request, body)

    with Sick(llava_engine, PRUNING).running() as server:
        remote = RemoteEngine(server.url, max_retries=0)
        found = {one.name: one for one in caption_in_flight(remote, pictures, QUESTION, 3, patience=30)}
        remote.close()
    assert len(found) == 12
    assert [name for name, one in found.items() if one.error] == [pictures[2].name]
    assert "failed (500)" in str(found[pictures[2].name].error)
    assert len(server.requests) <= 11 + MOST_FAILURES + 1


def test_a_proxy_without_a_server_behind_it_is_no_fault_of_a_picture(
    llava_engine: Engine, pictures: list[Picture]
) -> None:
    with ChatServer(llava_engine, PRUNING).running() as server:
        remote = RemoteEngine(server.url, max_retries=0)
        server.failures = [503] * (MOST_FAILURES + 1)
        found = list(caption_in_flight(remote, pictures[:1], QUESTION, 1, patience=30))
        remote.close()
    assert [one.error for one in found] == [None]


def test_who_stops_waiting_has_the_server_stop(
    server: ChatServer, remote: RemoteEngine, pictures: list[Picture]
) -> None:
    server.delay = 30

    def interrupt() -> None:
        if server.most_at_once == 6:
            raise KeyboardInterrupt

    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        list(caption_in_flight(remote, pictures, QUESTION, 6, on_wait=interrupt))
    assert time.monotonic() - begun < 5
    while server.num_abandoned < 6:
        assert time.monotonic() - begun < 5
        time.sleep(0.01)


def test_one_can_stop_while_the_server_takes_calls_and_says_nothing(
    llava_engine: Engine, pictures: list[Picture]
) -> None:
    server = ChatServer(llava_engine, PRUNING)
    asked_again = threading.Event()

    class Silent(ChatServer):
        async def _models(self, request: web.Request) -> web.Response:
            asked_again.set()
            await asyncio.sleep(30)
            return await super()._models(request)

    silent = Silent(llava_engine, PRUNING)
    silent.failures = [503] * 100

    def interrupt() -> None:
        if asked_again.is_set():
            raise KeyboardInterrupt

    with server.running():
        remote = RemoteEngine(server.url, max_retries=0)
        answers = caption_in_flight(remote, pictures, QUESTION, 2, patience=60, on_wait=interrupt)
        next(answers)
        silent.port = server.port
    with silent.running():
        begun = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            list(answers)
        assert time.monotonic() - begun < 10
        remote.close()


def test_what_no_picture_is_to_blame_for_ends_it(server: ChatServer, pictures: list[Picture]) -> None:
    remote = RemoteEngine(server.url, "other", max_retries=0)
    with pytest.raises(FileNotFoundError, match="no model 'other'"):
        list(caption_in_flight(remote, pictures, QUESTION, 2))
    with pytest.raises(FileNotFoundError, match="no model 'other'"):
        remote.connect()
    remote.close()


def test_several_models_have_to_be_told_apart(llava_engine: Engine) -> None:
    with ChatServer(llava_engine, PRUNING, ("a", "b")).running() as server:
        assert RemoteEngine(server.url, "b").connect()[0] == "b"
        with pytest.raises(InvalidInput, match="Say which model"):
            RemoteEngine(server.url).connect()
