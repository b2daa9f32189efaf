"""Write small random Gemma checkpoints in the published layout: configs, key names, processors, tokenizers."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForImageTextToText

from tests.support.checkpoints import published_key, small_tokenizer

# As published: turns of user and model, a system message in front of the first turn, pictures as one token.
CHAT_TEMPLATE = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{% set first_user_prefix = messages[0]['content'][0]['text'] + '\n\n' %}{% set loop_messages = messages[1:] %}"
    "{% else %}{% set first_user_prefix = '' %}{% set loop_messages = messages %}{% endif %}"
    "{% for message in loop_messages %}"
    "{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + (first_user_prefix if loop.first else '') }}"
    "{% if message['content'] is string %}{{ message['content'] | trim }}{% else %}"
    "{% for item in message['content'] %}{% if item['type'] == 'image' %}{{ '<start_of_image>' }}"
    "{% else %}{{ item['text'] | trim }}{% endif %}{% endfor %}{% endif %}{{ '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
TOKENS = {
    "boi_token": "<start_of_image>",
    "eoi_token": "<end_of_image>",
    "image_token": "<image_soft_token>",
    "start_of_turn": "<start_of_turn>",
    "end_of_turn": "<end_of_turn>",
}

# 8 x 8 patches, pooled to 4 x 4 tokens.
IMAGE_SIZE, SIDE = 112, 4


def save_gemma3(folder: Path, _kind: str = "gemma3", newlines: bool = False, **text_overrides: Any) -> Path:
    """Save one like google/gemma-3-4b-it: three sliding layers to a global one, not five; the output head is tied.

    With ``newlines`` the tokenizer has a token for each of one to four line breaks, as published; vLLM asks for them.
    """
    tokenizer = small_tokenizer("<bos>", "<eos>", "<unk>", **TOKENS)
    if newlines:
        tokenizer.add_tokens(["\n" * count for count in range(4, 0, -1)])
    ids = tokenizer.get_vocab()
    text = {
        "model_type": "gemma3_text",
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 8,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "query_pre_attn_scalar": 32,
        "max_position_embeddings": 2048,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 24,
        "sliding_window_pattern": 4,
        "initializer_range": 0.2,
    }
    config = {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "model_type": "gemma3",
        "boi_token_index": ids["<start_of_image>"],
        "eoi_token_index": ids["<end_of_image>"],
        "eos_token_id": [ids["<eos>"], ids["<end_of_turn>"]],
        "image_token_index": ids["<image_soft_token>"],
        "initializer_range": 0.2,
        "mm_tokens_per_image": SIDE**2,
        "text_config": text | text_overrides,
        "vision_config": {
            "model_type": "siglip_vision_model",
            "hidden_size": 32,
            "image_size": IMAGE_SIZE,
            "intermediate_size": 48,
            "num_attention_heads": 2,
            "num_hidden_layers": 3,
            "patch_size": 14,
            "vision_use_head": False,
            "initializer_range": 0.2,
        },
    }
    preprocessor = {
        "do_convert_rgb": None,
        "do_normalize": True,
        "do_pan_and_scan": None,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_processor_type": "Gemma3ImageProcessor",
        "image_seq_length": SIDE**2,
        "image_std": [0.5, 0.5, 0.5],
        "pan_and_scan_max_num_crops": None,
        "pan_and_scan_min_crop_size": None,
        "pan_and_scan_min_ratio_to_activate": None,
        "processor_class": "Gemma3Processor",
        "resample": 2,
        "rescale_factor": 0.00392156862745098,
        "size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE},
    }
    processor = {"image_seq_length": SIDE**2, "processor_class": "Gemma3Processor"}
    generation = {"bos_token_id": ids["<bos>"], "eos_token_id": config["eos_token_id"], "pad_token_id": ids["<pad>"]}
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)
    files = {
        "config": config,
        "preprocessor_config": preprocessor,
        "processor_config": processor,
        "generation_config": generation,
    }
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    _save_weights(folder)
    return folder


def _save_weights(folder: Path) -> None:
    torch.manual_seed(1)
    model = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(folder))
    with torch.no_grad():
        # These weights are initialised with zeros.
        model.model.multi_modal_projector.mm_input_projection_weight.normal_(std=0.5)
        for name, parameter in model.named_parameters():
            if "norm" in name and parameter.ndim == 1:
                # Layer outputs must be as large as the scaled embeddings, or the tied head repeats the last token.
                parameter += 0.2 * torch.randn_like(parameter) + 20.0 * ("post_" in name)
    weights = {
        published_key(name): value.clone() for name, value in model.state_dict().items() if name != "lm_head.weight"
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
