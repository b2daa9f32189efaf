"""A model family in one file is found by every surface, without an edit of the tree."""

import json
from pathlib import Path
from typing import Any

import pytest

import tops_engine.mini
from tests.contributing.conftest import TOPS, last_json, run_python
from tests.support.checkpoints import save_llava

TOY = "toy_family.py"
SAMPLE = str(Path(tops_engine.mini.__file__).with_name("sample.jpg"))

SURFACES = """
folder, picture = sys.argv[1:]
rows, table = tops("models", "--json"), tops("models")
asked = tops("ask", picture, "What?", "--model", folder, "--device", "cpu", "--max-tokens", "5", "--json")

from langchain_tops import ChatTOPSLlava, image_block
from tops_engine import Engine, Generation, ModelSpec, user_message
from pathlib import Path
from tops_workflow.host import Folders, QuietHost, current_host
from tops_workflow.registry import all_nodes

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
    "rows": json.loads(rows), "table": table.splitlines(), "asked": json.loads(asked),
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


@pytest.fixture(scope="module")
def shown(plugin: Path, folder: Path) -> Any:
    return last_json(run_python("-c", TOPS + SURFACES, str(folder), SAMPLE, plugins=str(plugin)))


def test_every_surface_runs_it(shown: Any) -> None:
    assert shown["family"] == "ToyLlava"
    assert shown["engine"] == shown["chat"] == shown["asked"]["text"]
    assert shown["engine"]
    assert shown["node"]
    assert shown["asked"]["usage"]["visual_tokens"] == 16


def test_the_command_line_lists_it_as_not_tested(shown: Any) -> None:
    (row,) = [row for row in shown["rows"] if row["model_type"] == "toy_llava"]
    assert row["checkpoints"] == ["nobody/toy-llava-7b"]
    assert "tops" in row["methods"]
    # The tests of this project say nothing of it, though it inherits from a family that they check.
    assert row["checked"] == []
    (line,) = [line for line in shown["table"] if "toy_llava" in line]
    assert "not tested" in line
