"""Test TOPS Load Model with a checkpoint of the hub: it goes into models/LLM, with its progress on the node."""

from pathlib import Path

import pytest
from tops_workflow.host import Interrupted

from nodes.loading import _local_models
from tests.nodes.conftest import RecordingHost, node
from tests.support.hub_server import HubServer, refusing_port, use_hub
from tops_engine.errors import ModelNotFound
from tops_engine.mini import mini_path

MODEL = "someone/small-model"


def load() -> str:
    (handle,) = node("TOPSLoadModel").load("mini", "auto", "cpu", "none", "sdpa", MODEL)
    return str(handle.spec.model)


def test_a_model_is_downloaded_once_stopped_and_continued(
    watching: RecordingHost, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with HubServer(mini_path()).running() as server:
        use_hub(monkeypatch, server.url, tmp_path / "hub")
        server.rate = 4e6
        watching.stop_after = 3
        with pytest.raises(Interrupted):
            load()
        (models,) = watching.folders.models["LLM"]
        assert _local_models() == []
        watching.stop_after, server.rate = None, 0
        assert load() == str(models / MODEL)
        assert f"Downloading {MODEL}: 0.0" in watching.texts[-1]
        done, total = watching.steps[-1]
        assert 0 < done == total
    # Without a network: it is in the model folders, under the same id.
    with refusing_port() as port:
        use_hub(monkeypatch, f"http://127.0.0.1:{port}", tmp_path / "hub")
        assert load() == str(models / MODEL)
        assert _local_models() == [f"LLM/{MODEL}"]
        with pytest.raises(ModelNotFound, match="was not downloaded before"):
            node("TOPSLoadModel").load("mini", "auto", "cpu", "none", "sdpa", "someone/else")


def test_models_of_the_list_are_offered_and_one_that_does_not_fit_is_refused_before_the_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loader = node("TOPSLoadModel")
    models, options = loader.INPUT_TYPES()["required"]["model"]
    assert models[:2] == ["mini", "HuggingFaceTB/SmolVLM-256M-Instruct"]
    assert "Qwen/Qwen3-VL-2B-Instruct: 4.3 GB, Apache 2.0; a good start" in options["tooltip"]
    monkeypatch.setattr("nodes.loading.total_memory", lambda device: int(12e9))
    large = "Qwen/Qwen3-VL-8B-Instruct"
    assert loader.VALIDATE_INPUTS(model=large) == (
        f"{large} needs about 19.0 GB of memory in bfloat16, and this machine has 12.0 GB; choose 8bit, or a smaller "
        "model."
    )
    assert loader.VALIDATE_INPUTS(model=large, quantization="4bit") is True
    assert "36.5 GB of memory in float32" in loader.VALIDATE_INPUTS(model=large, dtype="float32")
    assert "dtype='fast'" in loader.VALIDATE_INPUTS(model="mini", dtype="fast")
    assert "GGUF" in loader.VALIDATE_INPUTS(model="mini", hub_id="someone/Qwen3-VL-8B-GGUF")
