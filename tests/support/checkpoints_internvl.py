"""Write small InternVL checkpoints in the layout that OpenGVLab publishes under names that end in -hf."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import (
    GotOcr2ImageProcessorPil,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLVisionConfig,
)

from tests.support.checkpoints import IMAGE_SIZE, PATCH_SIZE, published_experts, small_tokenizer, text_config

TOKENS_PER_TILE = (IMAGE_SIZE // PATCH_SIZE // 2) ** 2

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% for part in message['content'] %}"
    "{{ {'image': '<IMG_CONTEXT>\n', 'video': '<video>\n'}.get(part['type'], part['text']) }}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

SPECIAL_TOKENS = {
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": "<IMG_CONTEXT>",
    "video_token": "<video>",
}


def save_internvl(folder: Path, kind: str = "qwen2", vision: dict[str, Any] | None = None, **overrides: Any) -> Path:
    """Save an InternVL checkpoint with 4 tokens a tile.

    ``vision`` overrides sizes of the tower, ``tie_word_embeddings`` shares the token table with the output head (as in
    the 1B model), and all other options are settings of the text model.
    """
    tokenizer = small_tokenizer(bos_token=None, eos_token="<|im_end|>", **SPECIAL_TOKENS)
    tied = overrides.pop("tie_word_embeddings", False)
    config = InternVLConfig(
        vision_config=InternVLVisionConfig(
            **{
                "hidden_size": 64,
                "intermediate_size": 128,
                "num_hidden_layers": 4,
                "num_attention_heads": 2,
                "image_size": [IMAGE_SIZE, IMAGE_SIZE],
                "patch_size": [PATCH_SIZE, PATCH_SIZE],
                "attention_bias": True,
                "initializer_range": 0.2,
            }
            | (vision or {})
        ),
        text_config=text_config(kind, len(tokenizer), tie_word_embeddings=tied, **overrides),
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=TOKENS_PER_TILE,
        tie_word_embeddings=tied,
        architectures=["InternVLForConditionalGeneration"],
    )
    torch.manual_seed(0)
    model = InternVLForConditionalGeneration(config).eval()
    # Positions and [CLS] are initialised with zeros; make them random.
    embeddings = model.model.vision_tower.embeddings
    torch.nn.init.normal_(embeddings.position_embeddings, std=0.2)
    torch.nn.init.normal_(embeddings.cls_token, std=0.2)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    images = GotOcr2ImageProcessorPil(size=size, crop_to_patches=False, min_patches=1, max_patches=12)
    described = images.to_dict() | {"image_processor_type": "GotOcr2ImageProcessorFast"}
    (folder / "preprocessor_config.json").write_text(json.dumps(described | {"processor_class": "InternVLProcessor"}))
    video = {"video_processor_type": "InternVLVideoProcessor", "size": size, "resample": 3}
    (folder / "video_preprocessor_config.json").write_text(json.dumps(video))
    (folder / "processor_config.json").write_text(
        json.dumps({"image_seq_length": TOKENS_PER_TILE, "processor_class": "InternVLProcessor"})
    )
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    if kind == "gpt_oss":
        # Initialised with zeros.
        for name, parameter in model.model.language_model.named_parameters():
            if name.endswith("bias"):
                torch.nn.init.normal_(parameter, std=0.2)
    weights = {
        _published_key(name): value.clone()
        for name, value in model.state_dict().items()
        if not (tied and name == "lm_head.weight")
    }
    if kind == "qwen3_moe":
        weights = dict(part for name, value in weights.items() for part in published_experts(name, value))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def _published_key(name: str) -> str:
    """Return the name of a weight in files on the hub."""
    for now, then in {
        "model.language_model.": "language_model.model.",
        "lm_head.": "language_model.lm_head.",
        "model.vision_tower.": "vision_tower.",
        "model.multi_modal_projector.": "multi_modal_projector.",
    }.items():
        if name.startswith(now):
            return then + name.removeprefix(now)
    raise AssertionError(f"no published name for {name}")
