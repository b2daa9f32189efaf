"""Write a small random LFM2-VL checkpoint in the published layout."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForImageTextToText

from tests.support.checkpoints import small_tokenizer

# As published, without tools.
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}{{ '<image>' }}"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
#: Tiles of 4 x 4 patches of 8 pixels, 2 x 2 of them a token: 4 tokens; the whole picture has 2 to 6 tokens.
PATCH_SIZE, TILE_SIZE, MAX_TILES = 8, 32, 4
TOKENS = {
    "image_token": "<image>",
    "image_start_token": "<|image_start|>",
    "image_end_token": "<|image_end|>",
    "image_thumbnail": "<|img_thumbnail|>",
    "turn_begin": "<|im_start|>",
} | {
    f"tile_{row}_{column}": f"<|img_row_{row}_col_{column}|>"
    for row in range(1, MAX_TILES + 1)
    for column in range(1, MAX_TILES + 1)
}


def save_lfm2_vl(folder: Path, _kind: str = "lfm2", **text_overrides: Any) -> Path:
    """Save one like LiquidAI/LFM2-VL-1.6B: two convolutions to a layer of attention; the output head is tied."""
    tokenizer = small_tokenizer("<|startoftext|>", "<|im_end|>", **TOKENS)
    ids = tokenizer.get_vocab()
    text = {
        "model_type": "lfm2",
        "block_auto_adjust_ff_dim": True,
        "block_ff_dim": 120,
        "block_ffn_dim_multiplier": 1.0,
        "block_multiple_of": 32,
        "bos_token_id": ids["<|startoftext|>"],
        "conv_L_cache": 3,
        "conv_bias": False,
        "eos_token_id": ids["<|im_end|>"],
        "full_attn_idxs": [2, 5, 7],
        "hidden_size": 64,
        "initializer_range": 0.2,
        "max_position_embeddings": 2048,
        "norm_eps": 1e-05,
        "num_attention_heads": 4,
        "num_hidden_layers": 8,
        "num_key_value_heads": 2,
        "pad_token_id": ids["<pad>"],
        "rope_theta": 1000000.0,
        "tie_embedding": True,
        "vocab_size": len(tokenizer),
    }
    config = {
        "architectures": ["Lfm2VlForConditionalGeneration"],
        "model_type": "lfm2_vl",
        "downsample_factor": 2,
        "image_token_id": ids["<image>"],
        "initializer_range": 0.2,
        "projector_bias": True,
        "projector_hidden_act": "gelu",
        "projector_hidden_size": 96,
        "projector_use_layernorm": True,
        "text_config": text | text_overrides,
        "vision_config": {
            "model_type": "siglip2_vision_model",
            "hidden_size": 32,
            "initializer_range": 0.2,
            "intermediate_size": 48,
            "num_attention_heads": 2,
            "num_hidden_layers": 3,
            "num_patches": 16,
            "patch_size": PATCH_SIZE,
            "vision_use_head": False,
        },
    }
    preprocessor = {
        "do_image_splitting": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "downsample_factor": 2,
        "encoder_patch_size": PATCH_SIZE,
        "image_mean": [0.5, 0.5, 0.5],
        "image_processor_type": "Lfm2VlImageProcessorFast",
        "image_std": [0.5, 0.5, 0.5],
        "max_image_tokens": 6,
        "max_pixels_tolerance": 2.0,
        "max_tiles": MAX_TILES,
        "min_image_tokens": 2,
        "min_tiles": 2,
        "processor_class": "Lfm2VlProcessor",
        "resample": 2,
        "rescale_factor": 0.00392156862745098,
        "tile_size": TILE_SIZE,
        "use_thumbnail": True,
    }
    generation = {
        "bos_token_id": ids["<|startoftext|>"],
        "eos_token_id": ids["<|im_end|>"],
        "pad_token_id": ids["<pad>"],
    }
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)
    files = {"config": config, "preprocessor_config": preprocessor, "generation_config": generation}
    files["processor_config"] = {"processor_class": "Lfm2VlProcessor", "use_image_special_tokens": True}
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    _save_weights(folder)
    return folder


def _save_weights(folder: Path) -> None:
    torch.manual_seed(3)
    model = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(folder))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:  # norms and biases, initialised with ones and zeros
                parameter += 0.2 * torch.randn_like(parameter)
        for name, parameter in model.named_parameters():
            if "conv.conv.weight" in name:
                parameter.normal_()
    weights = {name: value.clone() for name, value in model.state_dict().items() if name != "lm_head.weight"}
    # transformers 4 writes the tower's weights one level deeper.
    weights = {name.replace("vision_tower.", "vision_tower.vision_model."): value for name, value in weights.items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
