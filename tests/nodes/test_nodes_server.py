"""Nodes with a model behind a server, over real sockets."""

import json
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageSequence
from tops_workflow.convert import graph_to_prompt
from tops_workflow.formats import InvalidWorkflow, Prompt, read_workflow
from tops_workflow.host import Folders, Interrupted
from tops_workflow.registry import all_nodes
from tops_workflow.runner import WorkflowRunner
from tops_workflow.samples import provide_samples, samples_folder
from torch import Tensor

import nodes
from nodes.pictures import to_image, to_pictures
from nodes.servers import allowed_server
from tests.conftest import Picture
from tests.nodes.conftest import RecordingHost, node
from tests.support.chat_server import ChatServer
from tops_engine.conversation.messages import user_message
from tops_engine.encoding.encoder import shared_encoder
from tops_engine.engine import Engine
from tops_engine.errors import InvalidInput, MissingDependency, ModelNotFound, ServerError
from tops_engine.settings import Generation, ModelSpec, Pruning

QUESTION = "What number is written?"
PRUNING = Pruning(keep=0.5, stages="first")


@pytest.fixture(scope="module")
def plain() -> Engine:
    return Engine.load(ModelSpec(model="mini", device="cpu"))


@pytest.fixture
def server(plain: Engine, monkeypatch: pytest.MonkeyPatch) -> Iterator[ChatServer]:
    monkeypatch.setenv("TOPS_API_KEY", "a secret")
    with ChatServer(plain, PRUNING, key="a secret").running() as server:
        monkeypatch.setenv("TOPS_SERVERS", server.url)
        yield server


@pytest.fixture(scope="module")
def photo() -> Tensor:
    return to_image([Image.open(samples_folder() / "tops_photo.jpg")])


def load(server: ChatServer, name: str = "") -> Any:
    return node("TOPSLoadModel").load("mini", "auto", "cpu", "none", "sdpa", name, server.url)[0]


def ask(model: Any, prompt: str = QUESTION, tokens: int = 32, **inputs: Any) -> Any:
    return node("TOPSAsk").ask(model, prompt, tokens, 0.0, 0, **inputs)


def captions(model: Any, tokens: int = 12, size: int = 3, **inputs: Any) -> Any:
    listed = {name: value if isinstance(value, list) else [value] for name, value in inputs.items()}
    return node("TOPSCaptionBatch").caption([model], ["caption"], [size], [tokens], [0.0], [0], **listed)["result"]


def interrupt_once(host: RecordingHost, server: ChatServer, num_waiting: int) -> threading.Thread:
    """Press Stop as soon as so many requests wait."""

    def press() -> None:
        while server.most_at_once < num_waiting:
            time.sleep(0.01)
        host.stop.set()

    thread = threading.Thread(target=press)
    thread.start()
    return thread


def test_an_answer_streams_onto_the_node(
    server: ChatServer, photo: Tensor, plain: Engine, watching: RecordingHost
) -> None:
    prompt = "Describe the picture. Answer in a sentence."
    answer, token_map, history, _, stats_text, _ = ask(load(server), prompt, image=photo, system="Be brief.")["result"]
    messages = [{"role": "system", "content": "Be brief."}, user_message(prompt, to_pictures(photo)[0])]
    assert answer == plain.chat(messages, PRUNING, Generation(max_tokens=32)).text
    assert watching.texts[-1] == answer
    assert len(watching.steps) > 3
    assert watching.steps[-1] == (32, 32)
    assert token_map.shape == (1, 64, 64, 3)
    assert "(72 visual) after the server's pruning" in stats_text
    assert "model mini of a server" in stats_text
    again = ask(load(server, "mini"), "What colour is the star?", history=history, pruning=Pruning(keep=0.25))
    assert "(36 visual)" in again["result"][4]


def test_nodes_that_look_into_the_model_say_so(server: ChatServer, photo: Tensor) -> None:
    model = load(server)
    stats = ask(model, image=photo, tokens=2)["result"][3]
    with pytest.raises(InvalidInput, match=r"^TOPS Compare looks into the model, .* without a server\.$"):
        node("TOPSCompare").compare(model, photo, QUESTION, "tops", "0.222", 1, 8)
    with pytest.raises(InvalidInput, match=r"^TOPS Calibrate looks into the model"):
        node("TOPSCalibrate").calibrate([model], [photo], [QUESTION], [0.5], ["fitted"])
    with pytest.raises(InvalidInput, match=r"^TOPS Token Map needs to know which tokens were kept"):
        node("TOPSTokenMap").draw(stats, "dim", 0, 0)
    assert node("TOPSUnload").unload("x", model) == {"ui": {"text": ["freed: nothing"]}, "result": ("x",)}


def test_structured_answers_and_videos_come_from_servers_too(server: ChatServer, photo: Tensor, plain: Engine) -> None:
    pytest.importorskip("llguidance")
    schema = '{"type": "object", "properties": {"total": {"type": "integer"}}, "required": ["total"]}'
    done = node("TOPSStructured").ask(load(server), QUESTION, schema, "total", 64, 0.0, 0, photo)["result"]
    assert done[1] == [str(json.loads(done[0])["total"])]
    clip = Image.open(samples_folder() / "tops_clip.webp")
    frames = [frame.convert("RGB") for frame in ImageSequence.Iterator(clip)]
    video = node("TOPSVideoAsk").ask(load(server), to_image(frames), "What colour is the star?", 3, 2.5, 8, 0.0, 0)
    message = user_message("What colour is the star?", frames[0], frames[2], frames[5])
    assert video["result"][0] == plain.chat([message], PRUNING, Generation(max_tokens=8)).text


def test_an_interruption_ends_the_request_at_once(server: ChatServer, photo: Tensor, watching: RecordingHost) -> None:
    server.delay = 60
    model = load(server)
    pressing = interrupt_once(watching, server, 1)
    begun = time.monotonic()
    with pytest.raises(Interrupted):
        ask(model, image=photo)
    pressing.join()
    assert time.monotonic() - begun < 5
    while not server.num_abandoned:
        assert time.monotonic() - begun < 5
        time.sleep(0.01)


def test_captions_are_requests_at_once_and_come_in_order(
    server: ChatServer, plain: Engine, watching: RecordingHost, picture: Picture
) -> None:
    folder = watching.folders.input / "set"
    folder.mkdir()
    for number in range(5):
        picture(40 + number, 40, number).save(folder / f"{number}.png")
    (folder / "2.png").write_bytes(b"not a picture")
    (folder / "4.txt").write_text("mine\n")
    alpha = torch.rand(1, 40, 60, 4)
    server.delay = 0.05
    texts, names, stats, report, *_ = captions(load(server), images=[alpha], folder="set", write_txt=True)
    assert server.most_at_once == 3
    assert names == ["0", "0.png", "1.png", "3.png", "4.png"]
    prompt = "Describe this picture in one sentence."
    sources: list[Any] = [to_pictures(alpha)[0], *(folder / f"{number}.png" for number in (0, 1, 3))]
    expected = [plain.chat([user_message(prompt, one)], PRUNING, Generation(max_tokens=12)) for one in sources]
    assert texts == [*(" ".join(answer.text.split()) for answer in expected), "mine"]
    assert [answer.text for answer in stats.answers] == [answer.text for answer in expected]
    assert (folder / "3.txt").read_text() == texts[3] + "\n"
    assert report.startswith("4 captioned, 1 had a .txt file already, 1 failed.")
    assert "2.png" in report
    assert watching.steps[-1] == (60, 60)


def test_an_interruption_ends_all_requests_and_keeps_what_is_written(
    server: ChatServer, watching: RecordingHost, picture: Picture
) -> None:
    folder = watching.folders.input / "set"
    folder.mkdir()
    for number in range(9):
        picture(40, 40, number).save(folder / f"{number}.png")
    model = load(server)
    watching.stop_at_text = True  # a first caption is there
    with pytest.raises(Interrupted):
        captions(model, folder="set", write_txt=True)
    written = len(list(folder.glob("*.txt")))
    assert 1 <= written < 9
    watching.stop_at_text, server.delay, server.most_at_once = False, 60, 0
    pressing = interrupt_once(watching, server, 3)
    begun = time.monotonic()
    with pytest.raises(Interrupted):
        captions(model, folder="set", write_txt=True)
    pressing.join()
    assert time.monotonic() - begun < 5
    watching.stop.clear()
    server.delay = 0
    assert captions(model, folder="set", write_txt=True)[3].startswith(f"{9 - written} captioned, {written} had")


def test_faults_of_servers_are_one_sentence(server: ChatServer, photo: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelNotFound, match="no model 'other'; it has mini"):
        ask(load(server, "other"), image=photo)
    # The key is for servers that were named, not for whoever listens at a port of this machine.
    monkeypatch.delenv("TOPS_SERVERS")
    with pytest.raises(ServerError, match="refuses the API key"):
        ask(load(server), image=photo)


def test_without_the_library_one_is_told_which(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(MissingDependency, match="pip install openai"):
        node("TOPSLoadModel").load("mini", "auto", "cpu", "none", "sdpa", "", "http://127.0.0.1:8000")


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:8000", "https://localhost/v1", "http://[::1]:8000", " http://127.1.2.3:1/v1 "]
)
def test_a_server_on_this_machine_needs_no_permission(url: str) -> None:
    assert allowed_server(url).removesuffix("/v1") == url.strip().removesuffix("/v1")
    assert nodes.NODE_CLASS_MAPPINGS["TOPSLoadModel"].VALIDATE_INPUTS(model="gone", server=url) is True


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://gpu:8000/v1", "start ComfyUI with TOPS_SERVERS=http://gpu:8000 in the environment"),
        ("https://evil.example", "TOPS_SERVERS=https://evil.example:443"),
        ("http://127.0.0.1.evil.example:8000", "is not on this machine"),
        ("http://localhost.evil.example", "is not on this machine"),
        ("http://0.0.0.0:8000", "is not on this machine"),
        ("http://10.0.0.5:8001", "is not on this machine"),
        ("https://10.0.0.5:8000", "is not on this machine"),
        ("http://127.0.0.1@evil.example:8000", "holds a name, a password"),
        ("http://me:secret@127.0.0.1:8000", "TOPS_API_KEY"),
        ("http://127.0.0.1:8000/v1?key=secret", "TOPS_API_KEY"),
        ("ftp://127.0.0.1", "is not an address of a server"),
        ("127.0.0.1:8000", "is not an address of a server"),
        ("http://[::1", "is not an address of a server"),
        ("http://127.0.0.1:99999", "is not an address of a server"),
    ],
)
def test_others_need_one(url: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOPS_SERVERS", "nonsense, http://10.0.0.5:8000, https://llm.example")
    for known in ("http://10.0.0.5:8000/v1", "https://LLM.example:443/deep"):
        assert allowed_server(known).lower() == known.lower()
    said = nodes.NODE_CLASS_MAPPINGS["TOPSLoadModel"].VALIDATE_INPUTS(model="mini", server=url)
    assert words in said
    assert "secret" not in said
    with pytest.raises(InvalidInput):
        node("TOPSLoadModel").load("mini", "auto", "cpu", "none", "sdpa", "", url)


def test_a_workflow_runs_with_a_server_and_carries_no_key(server: ChatServer, tmp_path: Path) -> None:
    graph = read_workflow(Path(nodes.__file__).parents[1] / "workflows" / "ask_about_an_image.json").graph
    assert graph is not None
    definitions = all_nodes().definitions()
    prompt: Prompt = graph_to_prompt(graph, definitions)
    assert prompt["1"]["inputs"]["server"] == ""  # saved before there was one
    runner = WorkflowRunner(all_nodes().classes, Folders.under(tmp_path))
    provide_samples(prompt, runner.folders.input)
    prompt["1"]["inputs"]["server"] = server.url
    prompt["3"]["inputs"] |= {"keep": 0.5, "method": "tops"}
    assert runner.run(prompt).ui["5"]["text"] == ["5"]
    assert server.requests
    prompt["1"]["inputs"]["server"] = "http://gpu:8000"
    with pytest.raises(InvalidWorkflow, match=r"node 1 \(TOPSLoadModel\).*TOPS_SERVERS"):
        runner.run(prompt)


def test_pictures_are_encoded_before_the_server_gets_them(server: ChatServer, plain: Engine, photo: Tensor) -> None:
    (picture,) = to_pictures(photo)
    here = shared_encoder(ModelSpec(model="mini", device="cpu"))
    server.encoded = {here.encode(picture, PRUNING).image_embeds: picture}
    loader = node("TOPSLoadModel")
    (model,) = loader.load("mini", "auto", "cpu", "none", "sdpa", "mini", server.url, encode="here")
    text = ask(model, image=photo, pruning=PRUNING)["result"][0]
    assert text == plain.chat([user_message(QUESTION, picture)], PRUNING, Generation(max_tokens=32)).text
    assert "image_embeds" in str(server.requests[-1])


@pytest.mark.parametrize(
    ("server_url", "encode", "sentence"),
    [
        ("", "here", "encode is for a model behind a server"),
        ("http://127.0.0.1:8000", "there", "give `here`, or the address of an encoder"),
        ("http://127.0.0.1:8000", "http://gpu-box:8100", "The server gpu-box is not on this machine"),
    ],
)
def test_a_workflow_names_only_encoders_that_it_may(server_url: str, encode: str, sentence: str) -> None:
    refused = node("TOPSLoadModel").VALIDATE_INPUTS("mini", server=server_url, encode=encode)
    assert sentence in str(refused)
    with pytest.raises(InvalidInput, match=sentence):
        node("TOPSLoadModel").load("mini", "auto", "cpu", "none", "sdpa", "", server_url, encode=encode)
