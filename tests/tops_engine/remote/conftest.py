"""Provide mini behind a server, and the local engine's answers."""

from collections.abc import Iterator
from pathlib import Path

import pytest

import tops_engine.mini
from tests.support.chat_server import ChatServer
from tops_engine.engine import Engine
from tops_engine.remote import RemoteEngine
from tops_engine.settings import ModelSpec, Pruning

# Of 144 tokens of a picture, 72 enter the language model.
PRUNING = Pruning(keep=0.5, stages="first")

SAMPLE = Path(tops_engine.mini.__file__).with_name("sample.jpg")


@pytest.fixture(scope="session")
def mini() -> Engine:
    return Engine.load(ModelSpec(model="mini", device="cpu"))


@pytest.fixture
def server(mini: Engine) -> Iterator[ChatServer]:
    with ChatServer(mini, PRUNING).running() as server:
        yield server


@pytest.fixture
def remote(server: ChatServer) -> Iterator[RemoteEngine]:
    engine = RemoteEngine(server.url, max_retries=0, timeout=60)
    yield engine
    engine.close()
