"""Write small random GLM-4V checkpoints in the published layout: configs, key names, processors, tokenizers."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForImageTextToText

from tests.support.checkpoints import published_experts, small_tokenizer

# As published: pictures and videos in their markers, a turn for each message.
CHAT_TEMPLATE = (
    "[gMASK]<sop>{% for message in messages %}{{ '<|' + message['role'] + '|>\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for item in message['content'] %}"
    "{% if item['type'] == 'image' %}{{ '<|begin_of_image|><|image|><|end_of_image|>' }}"
    "{% elif item['type'] == 'video' %}{{ '<|begin_of_video|><|video|><|end_of_video|>' }}"
    "{% else %}{{ item['text'] }}{% endif %}{% endfor %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
TOKENS = (
    "[gMASK]",
    "<sop>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|begin_of_image|>",
    "<|end_of_image|>",
    "<|begin_of_video|>",
    "<|end_of_video|>",
    "<|image|>",
    "<|video|>",
)

TEXT: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "initializer_range": 0.2,
    "tie_word_embeddings": False,
    "partial_rotary_factor": 0.5,
    "rope_scaling": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]},
}
EXPERTS: dict[str, Any] = {
    "attention_bias": True,
    "first_k_dense_replace": 1,
    "moe_intermediate_size": 24,
    "n_group": 1,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_experts_per_tok": 2,
    "routed_scaling_factor": 1.0,
    "topk_group": 1,
}
# The model type, and the prefix of the types of its parts and of its processor.
KINDS = {"glm4v": ("glm4v", "Glm4v"), "glm4v_moe": ("glm4v_moe", "Glm4v"), "glm46v": ("glm4v", "Glm46V")}


def save_glm4v(folder: Path, kind: str = "glm4v", **text_overrides: Any) -> Path:
    """Save one like zai-org/GLM-4.1V-9B-Thinking."""
    parts, processor = KINDS[kind]
    tokenizer = small_tokenizer(None, "<|endoftext|>", "<unk>", **{token.strip("<|>[]"): token for token in TOKENS})
    tokenizer.chat_template = CHAT_TEMPLATE
    ids = tokenizer.get_vocab()
    text = TEXT | {"model_type": f"{parts}_text", "vocab_size": len(tokenizer), "pad_token_id": ids["<pad>"]}
    vision = {
        "model_type": f"{parts}_vision",
        "depth": 4,
        "hidden_size": 32,
        "hidden_act": "silu",
        "image_size": 84,
        "in_channels": 3,
        "initializer_range": 0.2,
        "intermediate_size": 96,
        "num_heads": 2,
        "out_hidden_size": TEXT["hidden_size"],
        "patch_size": 14,
        "rms_norm_eps": 1e-5,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    }
    architecture = {"glm4v": "Glm4v", "glm4v_moe": "Glm4vMoe", "glm46v": "Glm46V"}[kind]
    config = {
        "architectures": [f"{architecture}ForConditionalGeneration"],
        "model_type": kind,
        "text_config": text | (EXPERTS if kind == "glm4v_moe" else {}) | text_overrides,
        "vision_config": vision,
        "image_token_id": ids["<|image|>"],
        "video_token_id": ids["<|video|>"],
        "image_start_token_id": ids["<|begin_of_image|>"],
        "image_end_token_id": ids["<|end_of_image|>"],
        "video_start_token_id": ids["<|begin_of_video|>"],
        "video_end_token_id": ids["<|end_of_video|>"],
        "tie_word_embeddings": False,
    }
    # The limits are for both frames of a patch.
    pixels = {"patch_size": 14, "merge_size": 2, "temporal_patch_size": 2}
    preprocessor = {
        "image_processor_type": f"{processor}ImageProcessor",
        "processor_class": f"{processor}Processor",
        "size": {"shortest_edge": 2 * 28 * 28 * 4, "longest_edge": 2 * 28 * 28 * 64},
        **pixels,
    }
    video = {
        "video_processor_type": f"{processor}VideoProcessor",
        "size": {"shortest_edge": 28 * 28 * 8, "longest_edge": 28 * 28 * 16 * 12},
        **pixels,
    }
    generation = {"eos_token_id": [ids["<|endoftext|>"], ids["<|user|>"]], "pad_token_id": ids["<|endoftext|>"]}
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder)
    files = {
        "config": config,
        "preprocessor_config": preprocessor,
        "video_preprocessor_config": video,
        "generation_config": generation,
    }
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    _save_weights(folder)
    return folder


def save_glm4v_moe(folder: Path, _kind: str = "glm4v_moe", **text_overrides: Any) -> Path:
    """Save one like zai-org/GLM-4.5V: behind a dense layer, each token passes two of eight experts and a shared one."""
    return save_glm4v(folder, "glm4v_moe", **text_overrides)


def _save_weights(folder: Path) -> None:
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(folder))
    with torch.no_grad():
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if tensor.ndim == 1:  # norms, biases and corrections, initialised with ones and zeros
                tensor += 0.2 * torch.randn_like(tensor)
            elif name.endswith("mlp.gate.weight"):  # initialised with zeros
                tensor.normal_(std=0.2)
    weights = dict(
        published for name, value in model.state_dict().items() for published in published_experts(name, value)
    )
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
