"""Test `tops caption` against a real `tops serve`: many requests at once, stopped and continued."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tops_engine.captioning.prompts import PROMPTS
from tops_engine.conversation.messages import user_message
from tops_engine.engine import Engine
from tops_engine.mini import mini_path
from tops_engine.settings import Generation, ModelSpec, Pruning

pytestmark = pytest.mark.vllm

KEEP, NUM_TOKENS, NUM_KEPT = "0.222", 144, 32
NUM_PICTURES, CONCURRENCY = 60, 16


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from tests.integrations.vllm_tops.servers import OPTIONS, TOPS, environment, serving

    command = [*TOPS, "serve", "mini", "--keep", KEEP, *OPTIONS]
    with serving([(command, environment())], tmp_path_factory.mktemp("logs")) as (started,):
        yield started


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the sample picture at several rotations into two folders."""
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "deep").mkdir()
    sample = Image.open(Path(mini_path()).with_name("sample.jpg")).convert("RGB")
    for number in range(NUM_PICTURES):
        sample.rotate(6 * number).save(folder / ("deep" if number % 3 else ".") / f"{number:02}.jpg")
    return folder


def command(folder: Path, captions: Path, server: Any) -> list[str]:
    options = ["--server", server.url, "--concurrency", CONCURRENCY, "--max-tokens", 24, "-o", captions]
    return [sys.executable, "-m", "tops_engine.cli", "caption", *map(str, [folder, *options])]


def untimed(path: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


def test_a_folder_stopped_half_way_gets_the_captions_of_a_whole_run(server: Any, folder: Path, tmp_path: Path) -> None:
    whole, stopped = tmp_path / "whole.jsonl", tmp_path / "stopped.jsonl"
    subprocess.run(command(folder, whole, server), check=True, timeout=300)
    header, *lines = untimed(whole)
    assert header["model"] == "mini"
    assert header["pruning"]["keep"] == float(KEEP)
    assert [line["picture"] for line in lines] == sorted(
        (path.relative_to(folder).as_posix() for path in folder.rglob("*.jpg")), key=lambda name: name.split("/")
    )

    engine = Engine.load(ModelSpec(model="mini", device="cpu"))
    pruning = Pruning(keep=float(KEEP), stages="first")
    for line in lines[::20]:
        question = [user_message(PROMPTS["caption"], folder / line["picture"])]
        answer = engine.chat(question, pruning, Generation(max_tokens=24))
        assert line["caption"] == " ".join(answer.text.split())
        assert line["prompt_tokens"] == answer.usage.input_tokens == answer.usage.prompt_tokens - NUM_TOKENS + NUM_KEPT

    with subprocess.Popen(command(folder, stopped, server), stderr=subprocess.PIPE) as process:
        end = time.monotonic() + 200
        while not stopped.exists() or stopped.read_bytes().count(b"\n") < NUM_PICTURES // 3:
            assert process.poll() is None
            assert time.monotonic() < end
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGINT)
        begun = time.monotonic()
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert time.monotonic() - begun < 5
    assert b"the same command continues" in errors
    assert NUM_PICTURES // 3 <= len(untimed(stopped)) < NUM_PICTURES + 1
    while server.metric("vllm:num_requests_running") + server.metric("vllm:num_requests_waiting"):
        assert time.monotonic() - begun < 30
        time.sleep(0.1)

    subprocess.run(command(folder, stopped, server), check=True, timeout=300)
    assert untimed(stopped) == untimed(whole)
