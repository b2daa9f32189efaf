"""Test which models the nodes load, and when they are freed, on the embedded model."""

import gc
from pathlib import Path

import pytest

import nodes
from tests.nodes.conftest import RecordingHost, ask, node
from tops_engine.errors import ModelNotFound


def test_equal_settings_share_one_model_and_the_last_user_frees_it() -> None:
    load = node("TOPSLoadModel").load
    one, two = load("mini", "float32", "cpu", "none", "eager")[0], load("mini", "float32", "cpu", "none", "eager")[0]
    assert one is two
    engine = one.engine
    ask(one, "Hello", 1)
    assert engine.is_loaded
    del one, two
    gc.collect()
    assert not engine.is_loaded


def test_models_come_from_the_model_folders_only(watching: RecordingHost, llava_folder: Path) -> None:
    folder = watching.folders.models["TOPS"][0]
    (folder / "small").symlink_to(llava_folder)
    loader = nodes.NODE_CLASS_MAPPINGS["TOPSLoadModel"]
    assert "TOPS/small" in loader.INPUT_TYPES()["required"]["model"][0]
    assert loader.VALIDATE_INPUTS(model="mini") is True
    assert loader.VALIDATE_INPUTS(model=None, hub_id="owner/name") is True
    assert "models/LLM" in str(loader.VALIDATE_INPUTS(model="LLM/not-there"))
    for outside in ("/etc", "../../etc", "~/secret", "TOPS/../../x", "C:\\models"):
        assert loader.VALIDATE_INPUTS(model="mini", hub_id=outside) is not True
    with pytest.raises(ModelNotFound, match="not-there"):
        loader().load("TOPS/not-there", "auto", "cpu", "none", "sdpa")


def test_a_folder_inside_a_checkpoint_or_a_pipeline_is_no_checkpoint(watching: RecordingHost) -> None:
    folder = watching.folders.models["LLM"][0]
    for name in ("whole/config.json", "whole/clip/config.json", "pipe/model_index.json", "pipe/unet/config.json"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")
    (folder / "owner" / "name").mkdir(parents=True)
    (folder / "owner" / "name" / "config.json").write_text("{}")
    models = nodes.NODE_CLASS_MAPPINGS["TOPSLoadModel"].INPUT_TYPES()["required"]["model"][0]
    assert [name for name in models if name.startswith("LLM/")] == ["LLM/owner/name", "LLM/whole"]
