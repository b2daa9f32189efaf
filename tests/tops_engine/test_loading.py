"""Test loading checkpoints: what is refused, with which message."""

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.conftest import Picture
from tests.support.checkpoints import save_llava
from tops_engine.conversation.messages import user_message
from tops_engine.device.precision import computes_in_bfloat16
from tops_engine.engine import Engine
from tops_engine.errors import InvalidInput, MissingDependency, ModelNotFound, UnsupportedModel
from tops_engine.settings import Generation, ModelSpec, Pruning


@pytest.mark.parametrize(
    ("model", "error"),
    [("/no/such/folder", ModelNotFound), ("./nowhere", ModelNotFound), ("not a name!", ModelNotFound)],
)
def test_a_missing_checkpoint_is_named(model: str, error: type[Exception]) -> None:
    with pytest.raises(error, match=re.escape(model)):
        Engine.load(ModelSpec(model=model, device="cpu"))


@pytest.mark.parametrize(("from_size", "dtype"), [(8, "auto"), (10**6, "auto"), (8, "float32")])
def test_a_large_model_runs_in_bfloat16_on_a_cpu_that_computes_in_it(
    llava_folder: Path, monkeypatch: pytest.MonkeyPatch, from_size: int, dtype: Any
) -> None:
    monkeypatch.setattr("tops_engine.device.precision.BFLOAT16_FROM", from_size)
    engine = Engine.load(ModelSpec(model=str(llava_folder), device="cpu", dtype=dtype))
    expected = torch.bfloat16 if from_size == 8 and dtype == "auto" and computes_in_bfloat16() else torch.float32
    assert engine.family.decoder.dtype == expected
    assert engine.chat([user_message("Hello")], generation=Generation(max_tokens=2)).text is not None


def test_an_unknown_vision_tower_lists_the_supported_ones(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llava", "vision_config": {"model_type": "pixtral"}}')
    with pytest.raises(UnsupportedModel, match="'pixtral' vision tower; supported are clip_vision_model"):
        Engine.load(ModelSpec(model=str(tmp_path), device="cpu"))


def test_a_checkpoint_with_missing_weights_is_refused(tmp_path: Path) -> None:
    folder = save_llava(tmp_path)
    weights = load_file(folder / "model.safetensors")
    del weights["language_model.model.layers.3.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelNotFound, match=r"lacks 1 weights, such as .*layers\.3\.mlp\.up_proj"):
        Engine.load(ModelSpec(model=str(folder), device="cpu"))


def test_pickled_weights_are_not_read(tmp_path: Path, llava_folder: Path) -> None:
    folder = save_llava(tmp_path)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelNotFound):
        Engine.load(ModelSpec(model=str(folder), device="cpu"))


def test_a_damaged_weight_file_is_one_clear_error(tmp_path: Path) -> None:
    folder = save_llava(tmp_path)
    (folder / "model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{broken}")
    with pytest.raises(ModelNotFound, match="cannot be loaded"):
        Engine.load(ModelSpec(model=str(folder), device="cpu"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(InvalidInput, match="no device 'cuda'"):
        Engine(ModelSpec(model="mini", device="cuda"))


def test_missing_optional_packages_say_how_to_get_them(llava_folder: Path) -> None:
    needs: dict[str, dict[str, Any]] = {
        "bitsandbytes": {"quantization": "4bit"},
        "flash_attn": {"attention": "flash_attention_2"},
    }
    for package, options in needs.items():
        if importlib.util.find_spec(package) is None:
            with pytest.raises(MissingDependency, match=r"pip install|install it"):
                Engine.load(ModelSpec(model=str(llava_folder), device="cpu", **options))


def test_a_package_that_a_processor_asks_for_is_named(llava_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load_processor(*_: object) -> Any:
        raise ImportError("\nThe processor requires the torchvision library.\nInstall it.")

    monkeypatch.setattr("tops_engine.families.llava.Llava.load_processor", load_processor)
    with pytest.raises(MissingDependency, match="requires the torchvision library"):
        Engine.load(ModelSpec(model=str(llava_folder), device="cpu"))


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
@pytest.mark.parametrize("quantization", ["8bit", "4bit"])
def test_quantised_weights_answer_and_come_back(tmp_path: Path, picture: Picture, quantization: Any) -> None:
    folder = save_llava(tmp_path, hidden_size=256, intermediate_size=512)
    messages = [user_message("What?", picture(80, 60))]
    engine = Engine.load(ModelSpec(model=str(folder), device="cpu", quantization=quantization))
    answer = engine.chat(messages, Pruning(keep=0.5), Generation(max_tokens=4))
    assert answer.usage.layer_average == 8
    engine.offload()
    assert engine.chat(messages, Pruning(keep=0.5), Generation(max_tokens=4)).token_ids == answer.token_ids
