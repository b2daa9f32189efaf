"""Test mini's weights: they load with transformers' own classes, are small, and answer about unseen scenes."""

import json

import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, LlavaForConditionalGeneration, LlavaProcessor

from tops_engine.mini import mini_path
from tops_engine.mini.scenes import generate, is_correct


@pytest.fixture(scope="module")
def processor() -> LlavaProcessor:
    return AutoProcessor.from_pretrained(mini_path())


@pytest.fixture(scope="module")
def model() -> LlavaForConditionalGeneration:
    return LlavaForConditionalGeneration.from_pretrained(mini_path(), dtype=torch.float32).eval()


def reply(model: LlavaForConditionalGeneration, processor: LlavaProcessor, image: Image.Image, text: str) -> str:
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}]
    prompt = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    inputs = processor(text=prompt, images=[image], return_tensors="pt")
    with torch.inference_mode():
        output = model.generate(**inputs, max_new_tokens=24)
    return str(processor.tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)).strip()


def test_the_folder_is_small_and_whole() -> None:
    files = {path.name: path.stat().st_size for path in mini_path().iterdir()}
    assert sum(files.values()) < 40e6
    wanted = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"}
    assert wanted | {"README.md", "accuracy.json", "training_log.jsonl"} <= set(files)


def test_the_architecture_is_llava_with_clip_and_llama() -> None:
    config = json.loads((mini_path() / "config.json").read_text())
    assert config["model_type"] == "llava"
    assert config["vision_config"]["model_type"] == "clip_vision_model"
    assert config["text_config"]["model_type"] == "llama"
    assert config["text_config"]["num_hidden_layers"] >= 6
    assert config["text_config"]["head_dim"] in (32, 64)
    assert config["dtype"] == "float16"
    assert config["vision_feature_select_strategy"] == "default"


def test_all_weights_are_finite_in_float16(model: LlavaForConditionalGeneration) -> None:
    assert all(bool(torch.isfinite(parameter.half()).all()) for parameter in model.parameters())
    assert model.generation_config.eos_token_id == 2


def test_it_answers_about_unseen_scenes(model: LlavaForConditionalGeneration, processor: LlavaProcessor) -> None:
    hits = []
    for seed in range(5000, 5012):
        scene = generate(seed, "test")
        for question in scene.questions:
            if question.kind in ("colour", "shape", "digit", "exists"):
                hits.append(is_correct(question, reply(model, processor, scene.image, question.text)))
    assert sum(hits) / len(hits) > 0.75  # guessing gives about 0.25


def test_it_reads_the_number_in_the_sample(model: LlavaForConditionalGeneration, processor: LlavaProcessor) -> None:
    with Image.open(mini_path().parent / "sample.jpg") as picture:
        assert min(picture.size) > 336
        assert reply(model, processor, picture.convert("RGB"), "What number is written?") == "5"


def test_it_says_so_when_there_is_no_picture(model: LlavaForConditionalGeneration, processor: LlavaProcessor) -> None:
    inputs = processor.tokenizer("<s>User: What colour is the circle?\nAssistant:", return_tensors="pt")
    with torch.inference_mode():
        output = model.generate(**inputs, max_new_tokens=24)
    text = processor.tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert "no picture" in text
