"""Test the nodes with a model behind a server, in a real ComfyUI (skipped without COMFYUI_PATH)."""

import copy
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from tops_workflow.comfyui_client import ComfyUIClient
from tops_workflow.convert import graph_to_prompt
from tops_workflow.formats import InvalidWorkflow, Prompt, read_workflow
from tops_workflow.host import Interrupted

from tests.comfyui.conftest import Server
from tests.conftest import Picture
from tests.support.chat_server import ChatServer
from tests.workflows.test_shipped_workflows import CURRENT
from tops_engine.engine import Engine
from tops_engine.errors import TopsError
from tops_engine.settings import ModelSpec, Pruning


@pytest.fixture(scope="module")
def mini() -> Engine:
    return Engine.load(ModelSpec(model="mini", device="cpu"))


@pytest.fixture
def model(mini: Engine, server: Server) -> Iterator[ChatServer]:
    with ChatServer(mini, Pruning(keep=0.5, stages="first")).running() as running:
        yield running


@pytest.fixture
def ask(comfyui: ComfyUIClient, model: ChatServer) -> Prompt:
    """Return the first template with the server in its loader and no pruning."""
    path = next(path for path in CURRENT if path.stem == "ask_about_an_image")
    graph = read_workflow(path).graph
    assert graph is not None
    prompt = graph_to_prompt(graph, comfyui.definitions())
    prompt["1"]["inputs"]["server"] = model.url
    del prompt["4"]["inputs"]["pruning"]
    return prompt


@pytest.fixture(scope="module")
def has_openai() -> bool:
    python = os.environ.get("COMFYUI_PYTHON", sys.executable)
    return subprocess.run([python, "-c", "import openai"], stderr=subprocess.DEVNULL).returncode == 0


def test_without_the_library_one_is_told_which(comfyui: ComfyUIClient, ask: Prompt, has_openai: bool) -> None:
    if has_openai:
        pytest.skip("ComfyUI's Python has the openai library")
    with pytest.raises(TopsError, match=r"TOPSLoadModel \(node 1\): .*pip install openai"):
        comfyui.run(ask)


def test_servers_elsewhere_are_refused_before_the_run(comfyui: ComfyUIClient, ask: Prompt) -> None:
    ask["1"]["inputs"]["server"] = "http://gpu.example:8000"
    with pytest.raises(InvalidWorkflow, match=r"TOPS_SERVERS=http://gpu\.example:8000"):
        comfyui.run(ask)


def test_answers_stream_and_an_interruption_ends_them(
    comfyui: ComfyUIClient, ask: Prompt, model: ChatServer, has_openai: bool
) -> None:
    if not has_openai:
        pytest.skip("ComfyUI's Python lacks the openai library")
    heard: list[tuple[str, Any]] = []
    assert comfyui.run(ask, None, lambda kind, data: heard.append((kind, data))).ui["5"]["text"] == ["5"]
    assert {"progress", "text", "executed"} <= {kind for kind, _ in heard}
    assert len(model.requests) == 1

    model.delay = 60
    ask["4"]["inputs"]["prompt"] = "What colour is the star?"
    with pytest.raises(Interrupted):
        comfyui.run(ask, None, _stop_when(model, comfyui, 1))
    _wait_for(lambda: model.num_abandoned == 1)
    model.delay = 0
    assert comfyui.run(ask).ui["5"]["text"] == ["red"]


def test_questions_to_a_server_run_side_by_side_and_one_stop_ends_them_all(
    comfyui: ComfyUIClient, ask: Prompt, model: ChatServer, has_openai: bool
) -> None:
    if not has_openai:
        pytest.skip("ComfyUI's Python lacks the openai library")
    if comfyui.definitions()["TOPSPruning"]["input"]["required"]["method"][0] != "COMBO":
        pytest.skip("this ComfyUI has no V3 interface")
    questions = [f"What colour is the star, {number}?" for number in range(3)]
    prompt: Prompt = {"1": ask["1"], "2": ask["2"]}
    for number, question in enumerate(questions, 3):
        prompt[str(number)] = copy.deepcopy(ask["4"])
        prompt[str(number)]["inputs"]["prompt"] = question
    model.delay = 60
    with pytest.raises(Interrupted):
        comfyui.run(prompt, None, _stop_when(model, comfyui, 3))
    _wait_for(lambda: model.num_abandoned == 3)
    model.delay = 0.05
    assert set(comfyui.run(prompt).ui) == {"3", "4", "5"}
    assert model.most_at_once == 3


def test_a_folder_is_many_requests_at_once(
    comfyui: ComfyUIClient, ask: Prompt, model: ChatServer, server: Server, picture: Picture, has_openai: bool
) -> None:
    if not has_openai:
        pytest.skip("ComfyUI's Python lacks the openai library")
    folder = server.base / "input" / "served"
    folder.mkdir()
    for number in range(12):
        picture(40, 40, number).save(folder / f"{number:02}.png")
    inputs: dict[str, Any] = {"model": ["1", 0], "style": "caption", "batch_size": 4, "max_tokens": 8}
    inputs |= {"temperature": 0.0, "seed": 0, "folder": "served", "write_txt": True}
    prompt: Prompt = {"1": ask["1"], "2": {"class_type": "TOPSCaptionBatch", "inputs": inputs}}
    model.delay = 60
    with pytest.raises(Interrupted):
        comfyui.run(prompt, None, _stop_when(model, comfyui, 4))
    _wait_for(lambda: model.num_abandoned == 4)
    model.delay = 0.05
    (text,) = comfyui.run(prompt).ui["2"]["text"]
    assert [line.partition(":")[0] for line in text.splitlines()] == [f"{number:02}.png" for number in range(12)]
    assert model.most_at_once == 4
    assert len(list(folder.glob("*.txt"))) == 12


def _stop_when(model: ChatServer, comfyui: ComfyUIClient, num_waiting: int) -> Any:
    """Press Stop when the given number of requests wait."""
    pressed = threading.Event()

    def press() -> None:
        _wait_for(lambda: model.num_running == num_waiting)
        comfyui.interrupt()

    def listen(kind: str, data: dict[str, Any]) -> None:
        if not pressed.is_set():
            pressed.set()
            threading.Thread(target=press).start()

    return listen


def _wait_for(condition: Any) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)
