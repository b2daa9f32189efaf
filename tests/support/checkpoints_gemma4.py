"""Write small random Gemma 4 checkpoints in the published layout: configs, key names, processors, tokenizers."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForImageTextToText

from tests.support.checkpoints import small_tokenizer

# As published: turns of user and model, a system message as a turn of its own, pictures and videos as one token.
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}{{ '<|turn>' + role + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] | trim }}{% else %}"
    "{% for item in message['content'] %}{% if item['type'] == 'image' %}{{ '<|image|>' }}"
    "{% elif item['type'] == 'video' %}{{ '<|video|>' }}{% else %}{{ item['text'] | trim }}{% endif %}{% endfor %}"
    "{% endif %}{{ '<turn|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|turn>model\n' }}{% endif %}"
)
TOKENS = {
    "image_token": "<|image|>",
    "boi_token": "<|image>",
    "eoi_token": "<image|>",
    "audio_token": "<|audio|>",
    "boa_token": "<|audio>",
    "eoa_token": "<audio|>",
    "sot_token": "<|turn>",
    "eot_token": "<turn|>",
    "video_token": "<|video|>",
}

# A token is 3 x 3 patches of 4 x 4 pixels. The processor scales pictures so that they give 70 tokens at most.
PATCH_SIZE, BLOCK, MOST_TOKENS = 4, 3, 70

LAYERS = ("sliding", "sliding", "full", "sliding", "sliding", "full", "sliding", "full")

# What differs between the sizes: see the conversion script of transformers (models/gemma4).
SMALL: dict[str, Any] = {
    "hidden_size_per_layer_input": 8,
    "num_kv_shared_layers": 4,
    "use_double_wide_mlp": True,
    "attention_k_eq_v": False,
    "use_bidirectional_attention": None,
    "num_global_key_value_heads": None,
}
LARGE: dict[str, Any] = {
    "hidden_size_per_layer_input": 0,
    "num_kv_shared_layers": 0,
    "use_double_wide_mlp": False,
    "attention_k_eq_v": True,
    "use_bidirectional_attention": "vision",
    "num_global_key_value_heads": 1,
}
EXPERTS: dict[str, Any] = {
    "enable_moe_block": True,
    "num_experts": 8,
    "top_k_experts": 2,
    "moe_intermediate_size": 24,
}
KINDS = {"e2b": SMALL, "31b": LARGE, "26b-a4b": LARGE | EXPERTS}


def save_gemma4(folder: Path, kind: str = "e2b", **text_overrides: Any) -> Path:
    """Save one like google/gemma-4-E2B-it, -31B-it or -26B-A4B-it; the output head is tied."""
    tokenizer = small_tokenizer("<bos>", "<eos>", "<unk>", **TOKENS)
    ids = tokenizer.get_vocab()
    large = kind != "e2b"
    text = {
        "model_type": "gemma4_text",
        "vocab_size": len(tokenizer),
        "vocab_size_per_layer_input": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 8,
        # With four shared layers, layers 4 and 6 read those of layer 3, layers 5 and 7 those of layer 2.
        "layer_types": [f"{name}_attention" for name in LAYERS],
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "global_head_dim": 32,
        "max_position_embeddings": 2048,
        "rope_parameters": {
            "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1000000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        },
        "sliding_window": 40,
        "final_logit_softcapping": 30.0,
        "initializer_range": 0.2,
        "pad_token_id": ids["<pad>"],
        "bos_token_id": ids["<bos>"],
        "eos_token_id": ids["<eos>"],
        "tie_word_embeddings": True,
    }
    vision = {
        "model_type": "gemma4_vision",
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "patch_size": PATCH_SIZE,
        "pooling_kernel_size": BLOCK,
        "position_embedding_size": 256,
        "use_clipped_linears": not large,
        "standardize": large,
        "initializer_range": 0.2,
    }
    config = {
        "architectures": ["Gemma4ForConditionalGeneration"],
        "model_type": "gemma4",
        "text_config": text | KINDS[kind] | text_overrides,
        "vision_config": vision,
        "audio_config": None,
        "image_token_id": ids["<|image|>"],
        "video_token_id": ids["<|video|>"],
        "boi_token_id": ids["<|image>"],
        "eoi_token_id": ids["<image|>"],
        "audio_token_id": ids["<|audio|>"],
        "boa_token_id": ids["<|audio>"],
        "eoa_token_index": ids["<audio|>"],
        "eos_token_id": [ids["<eos>"], ids["<turn|>"]],
        "tie_word_embeddings": True,
    }
    sizes = {"patch_size": PATCH_SIZE, "pooling_kernel_size": BLOCK, "max_soft_tokens": MOST_TOKENS}
    processor = {
        "processor_class": "Gemma4Processor",
        "image_seq_length": MOST_TOKENS,
        "image_processor": {"image_processor_type": "Gemma4ImageProcessor", "do_normalize": False, **sizes},
        "video_processor": {"video_processor_type": "Gemma4VideoProcessor", **sizes},
        "feature_extractor": {"feature_extractor_type": "Gemma4AudioFeatureExtractor"},
    }
    generation = {"bos_token_id": ids["<bos>"], "eos_token_id": config["eos_token_id"], "pad_token_id": ids["<pad>"]}
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)
    files = {"config": config, "processor_config": processor, "generation_config": generation}
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    _save_weights(folder)
    return folder


def _save_weights(folder: Path) -> None:
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(folder))
    with torch.no_grad():
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            _vary(name, tensor)
    weights = {name: value.clone() for name, value in model.state_dict().items() if name != "lm_head.weight"}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def _vary(name: str, tensor: Tensor) -> None:
    """Change in place what is initialised with ones, zeros and infinities."""
    if name.endswith(("_min", "_max")):
        # Bounds of the tower's linear layers: some values are beyond them.
        tensor.fill_(-2.0 if name.endswith("_min") else 2.0)
    elif "position_embedding_table" in name:
        tensor.normal_(std=0.2)
    elif "norm" in name and tensor.ndim == 1:
        # Layer outputs must be as large as the scaled embeddings, or the tied head repeats the last token.
        in_text = "language_model" in name and "post_" in name
        tensor.add_(0.2 * torch.randn_like(tensor) + 5.0 * in_text)
    elif name.endswith(("layer_scalar", "router.scale", "per_expert_scale", "std_scale", "std_bias")):
        tensor.add_(0.1 * torch.randn_like(tensor))
