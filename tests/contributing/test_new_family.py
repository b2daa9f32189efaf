"""A model family in one file is found by every surface, without an edit of the tree."""

import json
from pathlib import Path

import pytest

import tops_engine.mini
from tests.contributing.conftest import last_json, run_python
from tests.support.checkpoints import save_llava

TOY = "toy_family.py"
SAMPLE = str(Path(tops_engine.mini.__file__).with_name("sample.jpg"))

SURFACES = """
import json, sys
from langchain_tops import ChatTOPSLlava, image_block
from tops_engine import Engine, Generation, ModelSpec, user_message
from pathlib import Path
from tops_workflow.host import Folders, QuietHost, current_host
from tops_workflow.registry import all_nodes

folder, picture = sys.argv[1:]
current_host.set(QuietHost(Folders.under(Path(folder).parents[2])))
generation = Generation(max_tokens=5)
engine = Engine.load(ModelSpec(model=folder, device="cpu"))
expected = engine.chat([user_message("What?", picture)], generation=generation)
chat = ChatTOPSLlava(model=folder, device="cpu", max_tokens=5)
message = chat.invoke([("user", [image_block(picture), {"type": "text", "text": "What?"}])])
nodes = all_nodes().classes
(handle,) = nodes["TOPSLoadModel"]().load("TOPS/toy", "auto", "cpu", "none", "sdpa")
answer = nodes["TOPSAsk"]().ask(handle, "Who?", 5, 0.0, 0)["result"][0]
print(json.dumps({
    "family": type(engine.family).__name__, "engine": expected.text, "chat": message.text, "node": answer,
}))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint") / "models" / "TOPS" / "toy"
    folder.mkdir(parents=True)
    save_llava(folder)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_type": "toy_llava"}))
    return folder


def test_every_surface_runs_it(plugin: Path, folder: Path) -> None:
    answers = last_json(run_python("-c", SURFACES, str(folder), SAMPLE, plugins=str(plugin)))
    assert answers["family"] == "ToyLlava"
    assert answers["engine"] == answers["chat"]
    assert answers["engine"]
    assert answers["node"]


def test_the_command_line_lists_and_runs_it(plugin: Path, folder: Path) -> None:
    rows = json.loads(run_python("-m", "tops_engine.cli", "models", "--json", plugins=str(plugin)).stdout)
    (row,) = [row for row in rows if row["model_type"] == "toy_llava"]
    assert row["checkpoints"] == ["nobody/toy-llava-7b"]
    assert "tops" in row["methods"]
    # The tests of this project say nothing of it, though it inherits from a family that they check.
    assert row["checked"] == []
    options = ["--model", str(folder), "--device", "cpu", "--max-tokens", "5", "--json"]
    done = run_python("-m", "tops_engine.cli", "ask", SAMPLE, "What?", *options, plugins=str(plugin))
    assert json.loads(done.stdout)["usage"]["visual_tokens"] == 16


def test_a_family_without_record_is_shown_as_not_tested(plugin: Path) -> None:
    lines = run_python("-m", "tops_engine.cli", "models", plugins=str(plugin)).stdout.splitlines()
    (line,) = [line for line in lines if "toy_llava" in line]
    assert "not tested" in line
