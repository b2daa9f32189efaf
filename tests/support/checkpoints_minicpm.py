"""Write small random MiniCPM-V 4.6 and 4.7 checkpoints in the published layout."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForImageTextToText

from tests.support.checkpoints import small_tokenizer
from tests.support.checkpoints_qwen import qwen3_5_text

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}{{ '<|image_pad|>\n' }}"
    "{% elif part['type'] == 'video' %}{{ '<|video_pad|>\n' }}"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TOKENS = {
    "image_token": "<|image_pad|>",
    "video_token": "<|video_pad|>",
    "image_start_token": "<image>",
    "image_end_token": "</image>",
    "slice_start_token": "<slice>",
    "slice_end_token": "</slice>",
    "image_id_start_token": "<image_id>",
    "image_id_end_token": "</image_id>",
    "turn_begin": "<|im_start|>",
}
#: A slice of 64 x 64 pixels has 8 x 8 patches and 4 tokens.
PATCH_SIZE, SLICE = 8, 64


def save_minicpmv4_6(folder: Path, _kind: str = "qwen3_5", version: str = "4_6", **overrides: Any) -> Path:
    """Save one like openbmb/MiniCPM-V-4.6: 2 x 2 patches are merged behind the first of four vision layers.

    ``overrides`` are settings of the model.
    """
    tokenizer = small_tokenizer(None, "<|im_end|>", **TOKENS)
    ids = tokenizer.get_vocab()
    vision = {
        "model_type": f"minicpmv{version}_vision",
        "hidden_size": 32,
        "image_size": 12 * PATCH_SIZE,
        "initializer_range": 0.2,
        "intermediate_size": 48,
        "num_attention_heads": 2,
        "num_hidden_layers": 4,
        "patch_size": PATCH_SIZE,
    }
    config: dict[str, Any] = {
        "architectures": [f"MiniCPMV{version}ForConditionalGeneration"],
        "model_type": f"minicpmv{version}",
        "downsample_mode": "16x",
        "image_token_id": ids["<|image_pad|>"],
        "insert_layer_id": 0,
        "text_config": qwen3_5_text() | {"vocab_size": len(tokenizer)},
        "tie_word_embeddings": False,
        "video_token_id": ids["<|video_pad|>"],
        "vision_config": vision,
    }
    names = ("image_start", "image_end", "slice_start", "slice_end")
    if version == "4_7":
        config |= {f"{name}_id": ids[TOKENS[f"{name}_token"]] for name in names}
        config["newline_id"] = ids["Ċ"]
    config |= overrides
    pictures: dict[str, Any] = {
        "downsample_mode": config["downsample_mode"],
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "max_slice_nums": 4,
        "patch_size": PATCH_SIZE,
        "scale_resolution": SLICE,
        "slice_mode": True,
        "use_image_id": True,
    }
    files = {
        "config": config,
        "generation_config": {"eos_token_id": ids["<|im_end|>"], "pad_token_id": ids["<pad>"]},
        "preprocessor_config": pictures | {"image_processor_type": "MiniCPMV4_6ImageProcessor"},
        "processor_config": {"processor_class": f"MiniCPMV{version}Processor"},
        "video_preprocessor_config": pictures | {"video_processor_type": "MiniCPMV4_6VideoProcessor"},
    }
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    _save_weights(folder)
    return folder


def save_minicpmv4_7(folder: Path, _kind: str = "qwen3_5", **overrides: Any) -> Path:
    """Save one like openbmb/MiniCPM-V-4.7-1B."""
    return save_minicpmv4_6(folder, version="4_7", **overrides)


def _save_weights(folder: Path) -> None:
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(folder))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:  # norms and biases, initialised with ones and zeros
                parameter += 0.2 * torch.randn_like(parameter)
            elif "merger" in name:
                parameter.normal_(std=0.2)
    save_file(model.state_dict(), folder / "model.safetensors", metadata={"format": "pt"})
