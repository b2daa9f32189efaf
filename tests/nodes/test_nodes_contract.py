"""The V1 contract of every node, and that nothing which was ever shipped has changed."""

import inspect
import json
import time
from pathlib import Path
from typing import Any

import pytest

import nodes
from tools.record_nodes import definition

ROOT = Path(__file__).parents[2]
IDS = sorted(nodes.NODE_CLASS_MAPPINGS)
TITLES = nodes.NODE_DISPLAY_NAME_MAPPINGS
WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN")


def inputs(node_id: str) -> dict[str, tuple[Any, dict[str, Any]]]:
    spec = definition(node_id)["input"]
    return {
        name: (entry[0], entry[1]) for kind in ("required", "optional") for name, entry in spec.get(kind, {}).items()
    }


@pytest.mark.parametrize("node_id", IDS)
def test_outputs_and_function_fit_together(node_id: str) -> None:
    node = nodes.NODE_CLASS_MAPPINGS[node_id]
    count = len(node.RETURN_TYPES)
    assert len(node.RETURN_NAMES) == len(node.OUTPUT_TOOLTIPS) == count
    assert len(getattr(node, "OUTPUT_IS_LIST", [None] * count)) == count
    assert node.CATEGORY.split("/")[0] == "TOPS"
    assert node.DESCRIPTION
    assert node.SEARCH_ALIASES
    assert node_id.startswith("TOPS")
    assert nodes.NODE_DISPLAY_NAME_MAPPINGS[node_id].startswith("TOPS ")


@pytest.mark.parametrize("node_id", IDS)
def test_every_optional_input_has_a_default_in_the_signature(node_id: str) -> None:
    node = nodes.NODE_CLASS_MAPPINGS[node_id]
    parameters = inspect.signature(getattr(node, node.FUNCTION)).parameters
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    spec = node.INPUT_TYPES()
    for name in [*spec["required"], *spec.get("optional", {})]:
        assert name in parameters or takes_all
    for name in spec.get("optional", {}):
        assert name not in parameters or parameters[name].default is not inspect.Parameter.empty


@pytest.mark.parametrize("node_id", IDS)
def test_defaults_lie_within_bounds_and_every_input_is_explained(node_id: str) -> None:
    for name, (kind, options) in inputs(node_id).items():
        assert options.get("tooltip"), name
        if isinstance(kind, list):
            assert options["default"] in kind
        elif kind in ("INT", "FLOAT"):
            assert options["min"] <= options["default"] <= options["max"]
            assert isinstance(options["default"], int if kind == "INT" else float)
        elif kind in WIDGETS:
            assert "default" in options


@pytest.mark.parametrize("node_id", IDS)
def test_no_input_is_a_socket_only(node_id: str) -> None:
    assert not any(options.get("forceInput") for _, options in inputs(node_id).values())


@pytest.mark.parametrize("node_id", IDS)
def test_a_new_node_keeps_its_seed(node_id: str) -> None:
    """A seed that changes after each run would run every node behind it again."""
    _, options = inputs(node_id).get("seed", (None, {"control_after_generate": "fixed"}))
    assert options["control_after_generate"] == "fixed"


@pytest.mark.parametrize("words", ["vlm", "llava", "describe", "chat", "json", "vqa"])
def test_the_words_that_users_search_for_find_a_node(words: str) -> None:
    texts = [[title, *nodes.NODE_CLASS_MAPPINGS[node_id].SEARCH_ALIASES] for node_id, title in TITLES.items()]
    assert any(words in text.lower() for one in texts for text in one)


@pytest.mark.parametrize("node_id", IDS)
def test_node_help_names_every_input_and_output(node_id: str) -> None:
    text = (ROOT / "web" / "docs" / f"{node_id}.md").read_text(encoding="utf-8")
    node = nodes.NODE_CLASS_MAPPINGS[node_id]
    for name in [*inputs(node_id), *node.RETURN_NAMES]:
        assert f"`{name}`" in text, name


def test_definitions_are_quick() -> None:
    for node_id in IDS:
        nodes.NODE_CLASS_MAPPINGS[node_id].INPUT_TYPES()
    begun = time.process_time()
    for _ in range(100):
        for node_id in IDS:
            nodes.NODE_CLASS_MAPPINGS[node_id].INPUT_TYPES()
    assert time.process_time() - begun < 0.5


def test_nothing_shipped_was_removed_renamed_or_reordered() -> None:
    shipped = json.loads((ROOT / "nodes" / "definitions.json").read_text(encoding="utf-8"))
    assert set(shipped) <= set(IDS)
    for node_id, before in shipped.items():
        now = definition(node_id)
        assert now["output"][: len(before["output"])] == before["output"]
        assert now["output_name"][: len(before["output"])] == before["output_name"]
        assert now["output_node"] == before["output_node"]
        for kind in ("required", "optional"):
            old, new = before["input"].get(kind, {}), now["input"].get(kind, {})
            assert list(new)[: len(old)] == list(old), f"{node_id}: inputs were reordered or removed"
            assert kind == "optional" or list(new) == list(old), f"{node_id}: a new input must be optional"
            for name, (old_kind, old_options) in old.items():
                _same_meaning(f"{node_id}.{name}", old_kind, old_options, *new[name])


def _same_meaning(name: str, old_kind: Any, old: dict[str, Any], new_kind: Any, new: dict[str, Any]) -> None:
    assert new.get("default") == old.get("default"), name
    if isinstance(old_kind, list):
        assert set(old_kind) <= set(new_kind), f"{name}: a saved choice is gone"
        return
    assert new_kind == old_kind, name
    if old_kind in ("INT", "FLOAT"):
        assert new["min"] <= old["min"] <= old["max"] <= new["max"], f"{name}: saved values may be out of bounds"


def test_the_record_of_what_is_shipped_is_complete() -> None:
    """After adding a node or input: python -m tools.record_nodes writes the record anew."""
    shipped = json.loads((ROOT / "nodes" / "definitions.json").read_text(encoding="utf-8"))
    assert {node_id: list(entry["input"].get("optional", {})) for node_id, entry in shipped.items()} == {
        node_id: list(definition(node_id)["input"].get("optional", {})) for node_id in IDS
    }
