"""A method in one file is found by every surface, without an edit of the tree."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from langchain_tops import ChatTOPSLlava
from vllm_tops.settings import for_vllm, served_methods

import nodes
import tops_engine.mini
from tests.contributing.conftest import TOPS, last_json, run_python
from tops_engine.errors import InvalidInput
from tops_engine.methods import METHODS
from tops_engine.registry import _import_plugin
from tops_engine.settings import Pruning, pruning_fields

TOY = "toy_method.py"
SAMPLE = str(Path(tops_engine.mini.__file__).with_name("sample.jpg"))

COMMANDS = """
question = [sys.argv[1], "What number is written?", "--model", "mini", "--device", "cpu"]
asked = tops("ask", *question, "--method", "first_tokens", "--skip", "3", "--keep", "24", "--json")
print(json.dumps({"asked": json.loads(asked), "help": tops("ask", "--help")}))
"""

SURFACES = """
import json
from langchain_tops import ChatTOPSLlava
from tops_workflow.registry import all_nodes
from vllm_tops.settings import read_pruning, served_methods
from tops_engine.settings.labels import read_labels

nodes = all_nodes()
widgets = nodes.definitions()["TOPSPruning"]["input"]
(settings,) = nodes.classes["TOPSPruning"]().settings(method="first_tokens", keep=0.5, options="skip=3")
chat = ChatTOPSLlava(model="mini", method="first_tokens", skip=3)
print(json.dumps({
    "widget": widgets["required"]["method"][0],
    "tooltip": widgets["required"]["method"][1]["tooltip"],
    "options": widgets["optional"]["options"][1]["tooltip"],
    "node": settings.resolved(),
    "field": ChatTOPSLlava.model_fields["skip"].description,
    "chat": chat._identifying_params["pruning"],
    "vllm": [served_methods(), read_pruning({"TOPS_KEEP": "0.5", "TOPS_METHOD": "first_tokens:skip=3"}).resolved()],
    "all": read_labels("all"),
}))
"""


def test_every_surface_offers_it(plugin: Path) -> None:
    shown = last_json(run_python("-c", SURFACES, plugins=str(plugin)))
    assert "first_tokens" in shown["widget"]
    assert "first_tokens: Keep the first tokens of each image, after those that are skipped." in shown["tooltip"]
    assert "skip (first_tokens): Skip this many tokens." in shown["options"]
    assert "first_tokens" in shown["all"]
    assert shown["field"] == "Skip this many tokens. (Of: first_tokens.)"
    names, vllm = shown["vllm"]
    assert "first_tokens" in names
    for resolved in (shown["node"], shown["chat"], vllm):
        assert (resolved["method"], resolved["skip"]) == ("first_tokens", 3)


def test_the_command_line_runs_it(plugin: Path) -> None:
    shown = last_json(run_python("-c", TOPS + COMMANDS, SAMPLE, plugins=str(plugin)))
    answer = shown["asked"]
    assert [(stage["layer"], stage["visual_tokens"]) for stage in answer["usage"]["stages"]] == [(0, [24])]
    assert (answer["pruning"]["method"], answer["pruning"]["skip"]) == ("first_tokens", 3)
    assert "--skip" in shown["help"]


def test_a_package_offers_it_by_an_entry_point(plugin: Path, tmp_path: Path) -> None:
    metadata = tmp_path / "toy-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: toy\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[tops_engine.methods]\nfirst_tokens = toy_method\n")
    done = run_python("-m", "tops_engine.cli", "models", "--json", path=(tmp_path, plugin.parent))
    rows = json.loads(done.stdout)
    assert rows
    assert all("first_tokens" in row["methods"] for row in rows)


@pytest.fixture
def defined_late(plugin: Path) -> Iterator[None]:
    """The method, defined after every surface was imported."""
    assert "first_tokens" not in METHODS
    assert "skip" not in ChatTOPSLlava.model_fields
    _import_plugin(str(plugin))
    yield
    METHODS.remove("first_tokens")


def test_a_method_that_is_defined_late_is_found_too(defined_late: None) -> None:
    assert pruning_fields()["skip"][1] == ["first_tokens"]
    assert "first_tokens" in nodes.NODE_CLASS_MAPPINGS["TOPSPruning"].INPUT_TYPES()["required"]["method"][0]
    assert "first_tokens" in served_methods()
    built = for_vllm(Pruning(method="first_tokens", keep=0.5, skip=3)).method_instance
    assert built == METHODS["first_tokens"].model_validate({"skip": 3})

    chat = ChatTOPSLlava(model="mini", device="cpu", method="first_tokens", keep=24, skip=3)
    assert chat.model_dump()["skip"] == 3
    answer = chat.invoke("Hello")
    assert answer.response_metadata["pruning"]["skip"] == 3
    assert chat.invoke("Hello", skip=5).response_metadata["pruning"]["skip"] == 5
    assert chat.bind(skip=7).invoke("Hello").response_metadata["pruning"]["skip"] == 7
    other = chat.invoke("Hello", method="random")
    assert "skip" not in other.response_metadata["pruning"]
    with pytest.raises(InvalidInput, match="did you mean 'skip'"):
        chat.invoke("Hello", skpi=5)
    with pytest.raises(ValueError, match="skip=-1 is not allowed"):
        ChatTOPSLlava(model="mini", method="first_tokens", skip=-1)
