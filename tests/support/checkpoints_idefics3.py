"""Write small Idefics3 and SmolVLM checkpoints in the published layout."""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AddedToken,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3ImageProcessorPil,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
    SmolVLMImageProcessorPil,
)

from tests.support.checkpoints import IMAGE_SIZE, PATCH_SIZE, small_tokenizer, text_config

TOKENS_PER_TILE = (IMAGE_SIZE // PATCH_SIZE // 2) ** 2

CHAT_TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}"
    "{{ ':' if message['content'][0]['type'] == 'image' else ': ' }}{% for part in message['content'] %}"
    "{{ '<image>' if part['type'] == 'image' else part['text'] }}{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)

SPECIAL_TOKENS = {
    "fake_image_token": "<fake_token_around_image>",
    "image_token": "<image>",
    "end_of_utterance_token": "<end_of_utterance>",
    "global_image_token": "<global-img>",
}


def save_idefics3(folder: Path, kind: str = "llama", smol: bool = False, splits: bool = True, **overrides: Any) -> Path:
    """Save an Idefics3 or SmolVLM checkpoint: 4 tokens a tile, pictures resized to 4 tiles along the long side.

    Without ``splits`` a picture is one tile. ``overrides`` are settings of the text model.
    """
    tokenizer = small_tokenizer(bos_token="<|im_start|>", eos_token="<end_of_utterance>", **SPECIAL_TOKENS)
    markers = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
    tokenizer.add_tokens([AddedToken(marker, special=True) for marker in markers])
    config_class, model_class = (
        (SmolVLMConfig, SmolVLMForConditionalGeneration) if smol else (Idefics3Config, Idefics3ForConditionalGeneration)
    )
    config = config_class(
        vision_config={
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 4,
            "num_attention_heads": 2,
            "image_size": IMAGE_SIZE,
            "patch_size": PATCH_SIZE,
            "initializer_range": 0.2,
        },
        text_config=text_config(kind, len(tokenizer), **overrides).to_dict(),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=2,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(0)
    model = model_class(config).eval()
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    # Weights have the same names in files on the hub and in memory.
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    name = "SmolVLM" if smol else "Idefics3"
    images = (SmolVLMImageProcessorPil if smol else Idefics3ImageProcessorPil)(
        size={"longest_edge": 4 * IMAGE_SIZE}, max_image_size={"longest_edge": IMAGE_SIZE}, do_image_splitting=splits
    )
    described = images.to_dict() | {"image_processor_type": f"{name}ImageProcessor"}
    (folder / "preprocessor_config.json").write_text(json.dumps(described | {"processor_class": f"{name}Processor"}))
    (folder / "processor_config.json").write_text(
        json.dumps({"image_seq_len": TOKENS_PER_TILE, "processor_class": f"{name}Processor"})
    )
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    return folder


def save_smolvlm(folder: Path, kind: str = "llama", **overrides: Any) -> Path:
    return save_idefics3(folder, kind, smol=True, **overrides)
