"""Write small random LLaVA-OneVision, LLaVA-NeXT-Video and LLaVA-Video checkpoints in the published layouts."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from tests.support.checkpoints import IMAGE_SIZE, PATCH_SIZE, published_key, small_tokenizer, text_config

SIGLIP_SIZE = 70
"""A side of 5 patches, which does not halve evenly, as the published side of 27."""

ONEVISION_TEMPLATE = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + ' '}}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'video') %}{{ '<video>' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ '\n' + content['text'] }}"
    "{% endfor %}{{'<|im_end|>'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

NEXT_VIDEO_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'system' %}{{ message['content'][0]['text'] }}"
    "{% else %}{{ message['role'].upper() + ': ' }}{% endif %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'video') %}{{ '<video>\n' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] + ' ' }}"
    "{% endfor %}{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)

NEXT_VIDEO_PINPOINTS = [[56, 112], [112, 56], [112, 112], [168, 56], [56, 168]]


def save_onevision(
    folder: Path,
    kind: str = "qwen2",
    tile_size: int = SIGLIP_SIZE,
    grid: int = 3,
    most_tiles: int = 2,
    **text_overrides: Any,
) -> Path:
    """Save one like llava-hf/llava-onevision-qwen2-7b-ov-hf: 3 x 3, not 6 x 6 tiles; the tokens of 2, not 9 tiles."""
    sides = [tile_size * count for count in range(1, grid + 1)]
    pinpoints = [[height, width] for height in sides for width in sides]
    vision = {
        "hidden_size": 64,
        "image_size": tile_size,
        "intermediate_size": 96,
        "model_type": "siglip_vision_model",
        "num_attention_heads": 2,
        "num_hidden_layers": 3,
        "patch_size": PATCH_SIZE,
        "vision_use_head": False,
    }
    config = {
        "architectures": ["LlavaOnevisionForConditionalGeneration"],
        "model_type": "llava_onevision",
        "image_grid_pinpoints": pinpoints,
        "projector_hidden_act": "gelu",
        "use_image_newline_parameter": True,
        "vision_aspect_ratio": f"anyres_max_{most_tiles}",
        "vision_config": vision,
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
    }
    colours = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5], "rescale_factor": 1 / 255}
    common = colours | {
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "processor_class": "LlavaOnevisionProcessor",
        "resample": 3,
        "size": {"height": tile_size, "width": tile_size},
    }
    image = {"do_pad": True, "image_grid_pinpoints": pinpoints, "image_processor_type": "LlavaOnevisionImageProcessor"}
    files: dict[str, dict[str, Any]] = {
        "preprocessor_config": common | image,
        "video_preprocessor_config": common | {"video_processor_type": "LlavaOnevisionVideoProcessor"},
        "processor_config": {
            "image_token": "<image>",
            "num_image_tokens": (tile_size // PATCH_SIZE) ** 2,
            "processor_class": "LlavaOnevisionProcessor",
            "video_token": "<video>",
            "vision_aspect_ratio": f"anyres_max_{most_tiles}",
            "vision_feature_select_strategy": "full",
        },
        "chat_template": {"chat_template": ONEVISION_TEMPLATE},
    }
    return _save(folder, config, files, kind, text_overrides, eos_token="<|im_end|>")


def save_next_video(folder: Path, kind: str = "llama", pool_mode: str = "average", **text_overrides: Any) -> Path:
    """Save one like llava-hf/LLaVA-NeXT-Video-7B-hf; no other LLaVA has its order of image and video tokens."""
    vision = {
        "hidden_size": 64,
        "image_size": IMAGE_SIZE,
        "intermediate_size": 128,
        "model_type": "clip_vision_model",
        "num_attention_heads": 2,
        "num_hidden_layers": 4,
        "patch_size": PATCH_SIZE,
        "projection_dim": 32,
        "vocab_size": 32000,
    }
    config = {
        "architectures": ["LlavaNextVideoForConditionalGeneration"],
        "model_type": "llava_next_video",
        "ignore_index": -100,
        "image_grid_pinpoints": NEXT_VIDEO_PINPOINTS,
        "projector_hidden_act": "gelu",
        "spatial_pool_mode": pool_mode,
        "spatial_pool_stride": 2,
        "use_image_newline_parameter": True,
        "vision_config": vision,
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
    }
    common = {
        "crop_size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        "do_center_crop": True,
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "processor_class": "LlavaNextVideoProcessor",
        "resample": 3,
        "rescale_factor": 1 / 255,
        "size": {"shortest_edge": IMAGE_SIZE},
    }
    image = {"image_grid_pinpoints": NEXT_VIDEO_PINPOINTS, "image_processor_type": "LlavaNextImageProcessor"}
    files: dict[str, dict[str, Any]] = {
        "preprocessor_config": common | image | {"do_pad": True},
        "video_preprocessor_config": common | {"video_processor_type": "LlavaNextVideoVideoProcessor"},
        "processor_config": {
            "image_token": "<image>",
            "num_additional_image_tokens": 1,
            "patch_size": PATCH_SIZE,
            "processor_class": "LlavaNextVideoProcessor",
            "video_token": "<video>",
            "vision_feature_select_strategy": "default",
        },
        "chat_template": {"chat_template": NEXT_VIDEO_TEMPLATE},
    }
    return _save(folder, config, files, kind, text_overrides)


def save_llava_video(folder: Path, kind: str = "qwen2", **original: Any) -> Path:
    """Save one like lmms-lab/LLaVA-Video-7B-Qwen2: only config, tokenizer and weights of the original code."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = small_tokenizer(eos_token="<|im_end|>", start_token="<|im_start|>")
    tokenizer.save_pretrained(folder)
    # As published, the token table has more rows than there are tokens.
    text = text_config(kind, len(tokenizer) + 10)
    sides = [SIGLIP_SIZE * count for count in range(1, 4)]
    config = text.to_dict() | {
        "architectures": ["LlavaQwenForCausalLM"],
        "model_type": "llava",
        "add_faster_video": False,
        "add_time_instruction": True,
        "image_aspect_ratio": "anyres_max_2",
        "image_grid_pinpoints": [[height, width] for height in sides for width in sides],
        "mm_hidden_size": 64,
        "mm_newline_position": "grid",
        "mm_patch_merge_type": "spatial_unpad",
        "mm_projector_type": "mlp2x_gelu",
        "mm_spatial_pool_mode": "bilinear",
        "mm_spatial_pool_stride": 2,
        "mm_vision_select_feature": "patch",
        "mm_vision_select_layer": -2,
        "mm_vision_tower": "google/siglip-so400m-patch14-384",
        "tokenizer_model_max_length": 32768,
        **original,
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": tokenizer.eos_token_id}))
    vision = SiglipVisionConfig(
        hidden_size=64,
        image_size=SIGLIP_SIZE,
        intermediate_size=96,
        num_attention_heads=16,
        num_hidden_layers=3,
        patch_size=PATCH_SIZE,
        vision_use_head=False,
    )
    torch.manual_seed(0)
    parts: dict[str, Any] = {
        "": AutoModelForCausalLM.from_config(text),
        "model.vision_tower.vision_tower.vision_model.": SiglipVisionModel(vision),
        "model.mm_projector.": nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 64)),
    }
    weights = {
        prefix + name: value + 0.2 * torch.randn_like(value) if prefix else value.clone()
        for prefix, part in parts.items()
        for name, value in part.state_dict().items()
    }
    weights["model.image_newline"] = torch.randn(64)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def _save(
    folder: Path,
    config: dict[str, Any],
    files: dict[str, dict[str, Any]],
    kind: str,
    text_overrides: dict[str, Any],
    eos_token: str = "</s>",
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = small_tokenizer(eos_token=eos_token, video_token="<video>", image_token="<image>")
    tokenizer.save_pretrained(folder)
    config |= {
        "image_token_index": tokenizer.convert_tokens_to_ids("<image>"),
        "video_token_index": tokenizer.convert_tokens_to_ids("<video>"),
        "text_config": text_config(kind, len(tokenizer), **text_overrides).to_dict(),
        "tie_word_embeddings": text_overrides.get("tie_word_embeddings", False),
    }
    files["config"] = config
    files["generation_config"] = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(folder))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "vision_tower" in name or "projector" in name or parameter.ndim == 1:
                parameter += 0.2 * torch.randn_like(parameter)
    tied = config["tie_word_embeddings"]
    weights = {
        published_key(name): value.clone()
        for name, value in model.state_dict().items()
        if not (tied and name == "lm_head.weight")
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder
