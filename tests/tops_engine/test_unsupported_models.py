"""Test that a checkpoint which cannot run is refused in one sentence that names what can."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from tests.conftest import Picture, Tops
from tests.support.checkpoints import save_llava
from tops_engine.conversation.messages import user_message
from tops_engine.engine import Engine
from tops_engine.errors import ContextLengthError, ModelNotFound, UnsupportedModel, listed
from tops_engine.families import FAMILIES
from tops_engine.settings import Generation, ModelSpec, Pruning
from tops_engine.unsupported_models import NEAREST, USUAL, WHY, embedding, other_format, unsupported

CODE = {"AutoModel": "modeling_x.X"}

#: Configs as they are published, cut to what tells them apart; what the sentence says.
CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "text only": (
        {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]},
        "is a text-only model ('qwen3') and sees no pictures; the nearest that works is Qwen/Qwen3-VL-",
    ),
    "text only of a family": (
        {"model_type": "gemma3_text", "architectures": ["Gemma3ForCausalLM"]},
        "is a text-only model ('gemma3_text') and sees no pictures; the nearest that works is google/gemma-3-12b-it.",
    ),
    "embedding": (
        {"model_type": "clip", "architectures": ["CLIPModel"], "vision_config": {}},
        "is an embedding model ('clip'), which writes no answers; the nearest that works is Qwen/",
    ),
    "part of a diffusion pipeline": (
        {"_class_name": "UNet2DConditionModel", "_diffusers_version": "0.30.0"},
        "is a part of a diffusion pipeline (UNet2DConditionModel), which answers no questions; name a vision-language",
    ),
    "family we lack": (
        {"model_type": "mllama", "architectures": ["MllamaForConditionalGeneration"], "vision_config": {}},
        f"is a 'mllama' model; supported are {listed(FAMILIES)}, in the layout of transformers (often published "
        "under names that end in -hf), and the nearest that works is llava-hf/",
    ),
    "tower of timm": (
        {"model_type": "fast_vlm", "architectures": ["FastVlmForConditionalGeneration"], "vision_config": {}},
        "is a 'fast_vlm' model, whose vision tower comes from timm, which needs torchvision; the engine runs without "
        f"both; supported are {listed(FAMILIES)}, in the layout of transformers (often published under names that end "
        "in -hf), and the nearest that works is llava-hf/llava-onevision-qwen2-7b-ov-hf.",
    ),
    "a later Granite": (
        {"model_type": "granite4_vision", "architectures": ["Granite4VisionForConditionalGeneration"]},
        "and the nearest that works is ibm-granite/granite-vision-3.3-2b.",
    ),
    "MiniCPM of before": (
        {"model_type": "minicpmo", "architectures": ["MiniCPMO"], "auto_map": CODE},
        "never executed; the nearest that works is openbmb/MiniCPM-V-4.6, which transformers runs natively.",
    ),
    "remote code": (
        {"model_type": "minicpmv", "architectures": ["MiniCPMV"], "auto_map": CODE},
        "('minicpmv') needs code from its repository (trust_remote_code), which is never executed; the nearest that",
    ),
    "original LLaVA": (
        {"model_type": "llava_llama", "mm_vision_tower": "openai/clip", "architectures": ["LlavaLlamaForCausalLM"]},
        "has the layout of the original LLaVA code, of which LLaVA-HR and LLaVA-Video are read; the nearest that works",
    ),
}


def refusal(model: str) -> str:
    with pytest.raises(UnsupportedModel) as raised:
        Engine.load(ModelSpec(model=model, device="cpu"))
    sentence = str(raised.value)
    assert "\n" not in sentence
    assert sentence.endswith(".")
    return sentence


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_config_of_another_kind_is_refused_with_the_nearest_that_works(tmp_path: Path, kind: str) -> None:
    config, says = CONFIGS[kind]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert says in refusal(str(tmp_path))


def test_a_sentence_transformers_folder_is_an_embedding_model(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]}')
    (tmp_path / "modules.json").write_text("[]")
    assert "is an embedding model ('qwen3')" in refusal(str(tmp_path))


def test_an_embedding_model_of_a_type_that_runs_is_refused(tmp_path: Path) -> None:
    config = {"model_type": "qwen3_vl", "architectures": ["Qwen3VLForConditionalGeneration"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "modules.json").write_text("[]")
    assert "is an embedding model ('qwen3_vl'), which writes no answers; the nearest" in refusal(str(tmp_path))
    for name, refused in (("Qwen/Qwen3-VL-Embedding-2B", True), ("Qwen/Qwen3-VL-2B-Instruct", False)):
        assert (embedding(name, name, config) is not None) == refused


def test_a_diffusion_pipeline_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    assert "is a diffusion pipeline, which makes pictures and answers no questions; name a" in refusal(str(tmp_path))


def test_gguf_weights_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "model-Q4_K_M.gguf"
    file.write_bytes(b"GGUF")
    assert "is a GGUF file, which the engine does not read" in refusal(str(file))
    assert "holds GGUF weights, which the engine does not read" in refusal(str(tmp_path))
    assert "holds GGUF weights" in str(other_format("unsloth/Qwen3-VL-8B-GGUF", "unsloth/Qwen3-VL-8B-GGUF", None))


def test_a_folder_without_a_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match=r"cannot be found: It has no config\.json\."):
        Engine.load(ModelSpec(model=str(tmp_path), device="cpu"))


def test_a_single_weight_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert "is a single file of weights; name the folder" in refusal(str(tmp_path / "model.safetensors"))


@pytest.mark.parametrize(
    ("name", "native"),
    [
        ("OpenGVLab/InternVL3-8B", "OpenGVLab/InternVL3-8B-hf"),
        ("OpenGVLab/InternVL3_5-4B", "OpenGVLab/InternVL3_5-4B-HF"),
        ("OpenGVLab/InternVL2_5-8B", "OpenGVLab/InternVL3"),
    ],
)
def test_the_original_layout_of_internvl_is_refused_with_the_native_checkpoint(
    tmp_path: Path, name: str, native: str
) -> None:
    config = {"model_type": "internvl_chat", "auto_map": CODE, "vision_config": {}}
    assert f"never executed; the nearest that works is {native}" in unsupported(name, str(tmp_path), None, config)


def test_the_nearest_families_work() -> None:
    assert USUAL in FAMILIES
    published = {name for model_type, family in FAMILIES.items() for name in family.checkpoints[model_type]}
    assert set(NEAREST.values()) <= set(FAMILIES) | published
    assert not set(WHY) & set(FAMILIES)


def test_a_checkpoint_without_its_tower_is_refused(tmp_path: Path) -> None:
    folder = save_llava(tmp_path)
    weights = load_file(folder / "model.safetensors")
    text = {name: value for name, value in weights.items() if name.startswith("language_model.")}
    save_file(text, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelNotFound, match=re.escape(f"{str(folder)!r} comes without its vision tower (it lacks ")):
        Engine.load(ModelSpec(model=str(folder), device="cpu"))


def test_more_pictures_than_the_context_holds_are_refused(llava_folder: Path, picture: Picture) -> None:
    engine = Engine.load(ModelSpec(model=str(llava_folder), device="cpu"))
    pictures = [picture(60, 60, 1)] * 130
    with pytest.raises(ContextLengthError, match="send fewer pictures or keep fewer tokens"):
        engine.chat([user_message("What?", *pictures)], Pruning(keep=1.0), Generation(max_tokens=2))
    assert engine.chat([user_message("What?", pictures[0])], generation=Generation(max_tokens=2)).text is not None


def test_the_command_prints_the_sentence(tops: Tops, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]}')
    result = tops("ask", "What is this?", "--model", str(tmp_path))
    assert result.code == 1
    assert "is a text-only model ('qwen3')" in result.err
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    result = tops("ask", "What is this?", "--model", str(tmp_path / "model.gguf"))
    assert "is a GGUF file, which the engine does not read" in result.err
