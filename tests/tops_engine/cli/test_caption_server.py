"""Test `tops caption --server`, with a server instead of a model."""

import json
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Picture, Tops
from tests.support.chat_server import ChatServer
from tests.support.commands import running_until
from tops_engine.engine import Engine
from tops_engine.settings import Pruning

KEY = "a secret"


@pytest.fixture
def server(llava_engine: Engine) -> Iterator[ChatServer]:
    pruning = Pruning(keep=0.5, stages="first")
    with ChatServer(llava_engine, pruning, ("small",), KEY).running() as server:
        yield server


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOPS_API_KEY", KEY)


@pytest.fixture
def folder(tmp_path: Path, picture: Picture) -> Path:
    folder = tmp_path / "pictures"
    (folder / "deep").mkdir(parents=True)
    for number in range(9):
        picture(40 + number, 50, number).save(folder / ("deep" if number % 2 else ".") / f"{number}.png")
    return folder


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def untimed(path: Path) -> list[dict[str, Any]]:
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines(path)]


def test_a_server_captions_as_the_model_does_here(
    tops: Tops, server: ChatServer, llava_folder: Path, folder: Path, tmp_path: Path
) -> None:
    here, there = tmp_path / "here.jsonl", tmp_path / "there.jsonl"
    server.delay = 0.05
    (folder / "5.png").write_bytes(b"broken")
    settings = ("--max-tokens", 3, "--prompt", "What?")
    local = ("--model", llava_folder, "--device", "cpu", "--keep", 0.5, "--stages", "first")
    assert tops("caption", folder, "-o", here, *settings, *local).code == 1
    result = tops("caption", folder, "-o", there, *settings, "--server", server.url, "--concurrency", 3)
    assert result.code == 1
    assert "Failed 5.png: " in result.err
    assert "9 captioned in" in result.err
    assert untimed(there)[1:] == untimed(here)[1:]
    assert server.most_at_once == 3
    header = lines(there)[0]
    assert header["model"] == "small"
    assert header["pruning"] == server.pruning.resolved()
    assert KEY not in there.read_text()


def test_faults_are_one_sentence(
    tops: Tops, server: ChatServer, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote = ("--server", server.url)
    cases: list[tuple[tuple[object, ...], str]] = [
        (("--server", "http://127.0.0.1:9"), "No server answers at http://127.0.0.1:9/v1"),
        (("--server", "file:///etc"), "is not an address of a server"),
        ((*remote, "--model", "large"), "The server has no model 'large'; it has small."),
        ((*remote, "--method", "random"), "prunes by tops:stages=first, as it was started; it cannot prune by random"),
        ((*remote, "--device", "cpu"), "--device is for a model on this machine"),
        ((*remote, "--batch-size", 4), "give --concurrency for a --server"),
        (("--concurrency", 4), "--concurrency is for a --server"),
    ]
    for arguments, message in cases:
        result = tops("caption", folder, "-o", tmp_path / "captions.jsonl", *arguments)
        assert result.code == 1
        assert message in result.err
        assert result.err.count("\n") == 1
    monkeypatch.delenv("TOPS_API_KEY")
    assert "refuses the API key" in tops("caption", folder, "-o", tmp_path / "captions.jsonl", *remote).err
    assert not (tmp_path / "captions.jsonl").exists()


def test_a_run_has_its_own_budget_and_keeps_it(tops: Tops, server: ChatServer, folder: Path, tmp_path: Path) -> None:
    captions = tmp_path / "captions.jsonl"
    options = ("-o", captions, "--server", server.url, "--max-tokens", 3)
    assert tops("caption", folder, *options, "--keep", 0.25).code == 0
    header, *found = lines(captions)
    assert header["pruning"]["keep"] == 0.25
    assert [line["visual_tokens"] for line in found] == [4] * 9
    result = tops("caption", folder, *options)
    assert result.code == 1
    assert "different: pruning" in result.err


def test_an_interrupted_run_goes_on_to_the_same_file(
    tops: Tops, server: ChatServer, folder: Path, tmp_path: Path
) -> None:
    for number in range(40):
        shutil.copy(folder / "2.png", folder / f"copy{number:02}.png")
    whole, stopped = tmp_path / "whole.jsonl", tmp_path / "stopped.jsonl"
    options = ("--server", server.url, "--concurrency", 4, "--max-tokens", 3)
    assert tops("caption", folder, "-o", whole, *options).code == 0
    server.delay = 0.2
    server.num_abandoned = 0
    with running_until(["caption", folder, "-o", stopped, *options], stopped, 6) as process:
        server.delay = 60  # nobody is waited for
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=10)
    assert process.returncode == 130
    assert b"the same command continues" in errors
    assert b"Traceback" not in errors
    assert 6 <= len(lines(stopped)) < 50

    server.delay = 0
    assert tops("caption", folder, "-o", stopped, *options).code == 0
    assert untimed(stopped) == untimed(whole)
    assert server.num_abandoned == 4
