"""Write small random Command A Vision and Aya Vision checkpoints in the published layouts."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForImageTextToText

from tests.support.checkpoints import IMAGE_SIZE, PATCH_SIZE, small_tokenizer

MARKS = {
    "start_of_img_token": "<|START_OF_IMG|>",
    "end_of_img_token": "<|END_OF_IMG|>",
    "img_patch_token": "<|IMG_PATCH|>",
    "img_line_break_token": "<|IMG_LINE_BREAK|>",
    "turn_begin": "<|START_OF_TURN_TOKEN|>",
    "user": "<|USER_TOKEN|>",
    "chatbot": "<|CHATBOT_TOKEN|>",
    "system": "<|SYSTEM_TOKEN|>",
}
END = "<|END_OF_TURN_TOKEN|>"
#: As published, without tools; the placeholder of a picture differs.
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|START_OF_TURN_TOKEN|>' + {'user': '<|USER_TOKEN|>', 'assistant': '<|CHATBOT_TOKEN|>'}"
    ".get(message['role'], '<|SYSTEM_TOKEN|>') }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{{ 'PICTURE' if part['type'] == 'image' else part['text'] }}{% endfor %}{% endif %}"
    "{{ '<|END_OF_TURN_TOKEN|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>' }}{% endif %}"
)
#: A tile has 4 x 4 patches and 2 x 2 tokens.
SIDE = IMAGE_SIZE // PATCH_SIZE // 2


def text_config(vocab_size: int, kind: str) -> dict[str, Any]:
    """Return the config of a text model of the kind cohere2, three sliding layers to a global one, or cohere."""
    sizes: dict[str, Any] = {
        "model_type": kind,
        "hidden_size": 64,
        "initializer_range": 0.2,
        "intermediate_size": 96,
        "max_position_embeddings": 2048,
        "num_attention_heads": 4,
        "num_hidden_layers": 8,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
        "vocab_size": vocab_size,
    }
    return sizes | ({"sliding_window": 24, "sliding_window_pattern": 4} if kind == "cohere2" else {})


def vision_config() -> dict[str, Any]:
    return {
        "model_type": "siglip_vision_model",
        "hidden_size": 32,
        "image_size": IMAGE_SIZE,
        "initializer_range": 0.2,
        "intermediate_size": 48,
        "num_attention_heads": 2,
        "num_hidden_layers": 3,
        "patch_size": PATCH_SIZE,
        "vision_use_head": False,
    }


def save_cohere2_vision(folder: Path, kind: str = "cohere2", **text_overrides: Any) -> Path:
    """Save one like CohereLabs/command-a-vision-07-2025, with at most 4 tiles."""
    names = MARKS | {"image_token": MARKS["img_patch_token"]}
    names |= {"boi_token": MARKS["start_of_img_token"], "eoi_token": MARKS["end_of_img_token"]}
    tokenizer = small_tokenizer("<BOS_TOKEN>", END, None, **names)
    config = {
        "architectures": ["Cohere2VisionForConditionalGeneration"],
        "model_type": "cohere2_vision",
        "alignment_intermediate_size": 96,
        "downsample_factor": 2,
        "image_token_id": tokenizer.convert_tokens_to_ids(MARKS["img_patch_token"]),
    }
    pictures = {
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "max_patches": 4,
        "patch_size": SIDE,
        "size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE},
    }
    files: dict[str, dict[str, Any]] = {
        "preprocessor_config": pictures | {"image_processor_type": "Cohere2VisionImageProcessorFast"},
        "processor_config": {"processor_class": "Cohere2VisionProcessor"},
    }
    tokenizer.chat_template = TEMPLATE.replace("PICTURE", MARKS["img_patch_token"])
    return _save(folder, tokenizer, config | {"text_config": text_config(len(tokenizer), kind) | text_overrides}, files)


def save_aya_vision(folder: Path, kind: str = "cohere2", **text_overrides: Any) -> Path:
    """Save one like CohereLabs/aya-vision-8b, with at most 4 tiles; of the kind cohere, one like -32b."""
    numbers = {f"tile_{number}": f"TILE_{number}" for number in range(1, 5)}
    names = MARKS | numbers | {"image_token": "<image>", "tile_global": "TILE_GLOBAL"}
    tokenizer = small_tokenizer("<BOS_TOKEN>", END, None, **names)
    config = {
        "architectures": ["AyaVisionForConditionalGeneration"],
        "model_type": "aya_vision",
        "adapter_layer_norm_eps": 1e-06,
        "alignment_intermediate_size": 96,
        "downsample_factor": 2,
        "image_token_index": tokenizer.convert_tokens_to_ids(MARKS["img_patch_token"]),
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
    }
    pictures = {
        "crop_to_patches": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "max_patches": 4,
        "min_patches": 1,
        "size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE},
    }
    processor = {
        "downsample_factor": 2,
        "img_size": IMAGE_SIZE,
        "patch_size": PATCH_SIZE,
        "processor_class": "AyaVisionProcessor",
    }
    files: dict[str, dict[str, Any]] = {
        "preprocessor_config": pictures | {"image_processor_type": "GotOcr2ImageProcessor"},
        "processor_config": processor,
    }
    tokenizer.chat_template = TEMPLATE.replace("PICTURE", "<image>")
    return _save(folder, tokenizer, config | {"text_config": text_config(len(tokenizer), kind) | text_overrides}, files)


def _save(folder: Path, tokenizer: Any, config: dict[str, Any], files: dict[str, dict[str, Any]]) -> Path:
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config["text_config"] |= ids | {"pad_token_id": tokenizer.pad_token_id}
    files["config"] = config | {"tie_word_embeddings": True, "vision_config": vision_config()}
    files["generation_config"] = ids | {"pad_token_id": tokenizer.pad_token_id}
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder)
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(folder))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:  # norms and biases, initialised with ones and zeros
                parameter += 0.2 * torch.randn_like(parameter)
            elif "_proj.weight" in name and "language_model" in name:
                # Layer outputs must be large beside the embeddings, or the tied head repeats the last token.
                parameter *= 3.0
    weights = {
        published_key(name, config["model_type"]): value.clone()
        for name, value in model.state_dict().items()
        if name != "lm_head.weight"
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def published_key(name: str, model_type: str) -> str:
    """Return a weight's name in files: of transformers 4, with and without ``model`` in front."""
    name = name.replace("vision_tower.", "vision_tower.vision_model.")
    if model_type == "cohere2_vision":
        return name
    return name.replace("model.language_model.", "language_model.model.").removeprefix("model.")
