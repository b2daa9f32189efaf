"""Write small random Qwen-VL checkpoints in the published layout: configs, key names, processors, tokenizers."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import AutoConfig, AutoModelForImageTextToText

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)

# As published: a default system prompt, pictures wrapped in their markers.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "{% endif %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part['type'] == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

CORPUS = ["What is shown in this picture? A red circle, two digits and the word HELLO. \n"] * 4

# Sizes of the text model. Initial weights larger than usual give confident, varied answers.
TEXT: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "initializer_range": 0.2,
    "tie_word_embeddings": False,
}
DEPTH = 4

QWEN3_PREPROCESSOR: dict[str, Any] = {
    "size": {"longest_edge": 32 * 32 * 64, "shortest_edge": 32 * 32 * 4},
    "patch_size": 16,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "processor_class": "Qwen3VLProcessor",
    "image_processor_type": "Qwen2VLImageProcessorFast",
}
# The limit is for all frames together: 16 frames can have 12 tokens each.
QWEN3_VIDEO: dict[str, Any] = {"size": {"longest_edge": 32 * 32 * 16 * 12, "shortest_edge": 32 * 32 * 8}}


def save_qwen2_vl(folder: Path, _kind: str = "qwen2", **text_overrides: Any) -> Path:
    """Save one like Qwen/Qwen2-VL-7B-Instruct: a flat config, full attention in the vision tower."""
    vision = {
        "depth": DEPTH,
        "embed_dim": 32,
        "hidden_size": TEXT["hidden_size"],
        "mlp_ratio": 2,
        "num_heads": 2,
        "in_chans": 3,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "spatial_patch_size": 14,
        "temporal_patch_size": 2,
        "initializer_range": 0.2,
    }
    config = _flat_config("Qwen2VLForConditionalGeneration", "qwen2_vl", vision, text_overrides)
    # With seed 0 the two best logits of an answer differ by 4e-6, which is within the rounding of float32.
    return _save(folder, config, _preprocessor("Qwen2VLProcessor"), seed=1)


def save_qwen2_5_vl(folder: Path, _kind: str = "qwen2", **text_overrides: Any) -> Path:
    """Save one like Qwen/Qwen2.5-VL-7B-Instruct: most vision layers have windows of 4 x 4 tokens."""
    vision = {
        "depth": DEPTH,
        "hidden_act": "silu",
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_heads": 2,
        "in_chans": 3,
        "out_hidden_size": TEXT["hidden_size"],
        "patch_size": 14,
        "spatial_merge_size": 2,
        "spatial_patch_size": 14,
        "window_size": 112,
        "fullatt_block_indexes": [1, 3],
        "tokens_per_second": 2,
        "temporal_patch_size": 2,
        "initializer_range": 0.2,
    }
    config = _flat_config("Qwen2_5_VLForConditionalGeneration", "qwen2_5_vl", vision, text_overrides)
    return _save(folder, config, _preprocessor("Qwen2_5_VLProcessor"))


def save_qwen3_vl(
    folder: Path, _kind: str = "qwen3", model: dict[str, Any] | None = None, **text_overrides: Any
) -> Path:
    """Save one like Qwen/Qwen3-VL-8B-Instruct: features of three vision layers go to the first three decoder layers."""
    vision = {
        "deepstack_visual_indexes": [0, 1, 2],
        "depth": DEPTH,
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_size": 32,
        "in_channels": 3,
        "initializer_range": 0.2,
        "intermediate_size": 48,
        "model_type": "qwen3_vl",
        "num_heads": 2,
        "num_position_embeddings": 36,
        "out_hidden_size": TEXT["hidden_size"],
        "patch_size": 16,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    }
    rope = {"mrope_interleaved": True, "mrope_section": [4, 2, 2], "rope_type": "default"}
    text = TEXT | {"model_type": "qwen3_vl_text", "head_dim": 16, "rope_scaling": rope, "rope_theta": 5000000}
    config = {
        **(model or {"architectures": ["Qwen3VLForConditionalGeneration"], "model_type": "qwen3_vl"}),
        "text_config": text | text_overrides,
        "vision_config": vision,
        "tie_word_embeddings": (text | text_overrides)["tie_word_embeddings"],
    }
    return _save(folder, config, QWEN3_PREPROCESSOR, QWEN3_VIDEO)


def save_qwen3_vl_moe(folder: Path, _kind: str = "qwen3_moe", **text_overrides: Any) -> Path:
    """Save one like Qwen/Qwen3-VL-30B-A3B-Instruct: each token passes through two of eight experts."""
    experts: dict[str, Any] = {
        "model_type": "qwen3_vl_moe_text",
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "moe_intermediate_size": 24,
        "norm_topk_prob": True,
        "num_experts": 8,
        "num_experts_per_tok": 2,
    }
    model = {"architectures": ["Qwen3VLMoeForConditionalGeneration"], "model_type": "qwen3_vl_moe"}
    return save_qwen3_vl(folder, model=model, **experts | text_overrides)


def save_qwen3_5(
    folder: Path, _kind: str = "qwen3_5", model: dict[str, Any] | None = None, **text_overrides: Any
) -> Path:
    """Save one like Qwen/Qwen3.5-9B: Qwen3-VL's vision tower without deepstack, three linear layers to a full one."""
    vision = {
        "deepstack_visual_indexes": [],
        "depth": DEPTH,
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_size": 32,
        "in_channels": 3,
        "initializer_range": 0.2,
        "intermediate_size": 48,
        "model_type": "qwen3_5",
        "num_heads": 2,
        "num_position_embeddings": 36,
        "out_hidden_size": TEXT["hidden_size"],
        "patch_size": 16,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    }
    text = qwen3_5_text()
    config = {
        **(model or {"architectures": ["Qwen3_5ForConditionalGeneration"], "model_type": "qwen3_5"}),
        "text_config": text | text_overrides,
        "vision_config": vision,
        "tie_word_embeddings": (text | text_overrides)["tie_word_embeddings"],
    }
    return _save(folder, config, QWEN3_PREPROCESSOR, QWEN3_VIDEO)


def qwen3_5_text() -> dict[str, Any]:
    """Return the config of a text model of Qwen3.5: three linear layers to a full one."""
    rope = {
        "mrope_interleaved": True,
        "mrope_section": [4, 2, 2],
        "partial_rotary_factor": 0.25,
        "rope_theta": 10000000,
        "rope_type": "default",
    }
    num_layers = TEXT["num_hidden_layers"]
    return TEXT | {
        "model_type": "qwen3_5_text",
        "attn_output_gate": True,
        "full_attention_interval": 4,
        "head_dim": 64,
        "layer_types": [("full" if layer % 4 == 3 else "linear") + "_attention" for layer in range(num_layers)],
        "linear_conv_kernel_dim": 4,
        "linear_key_head_dim": 16,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_value_head_dim": 16,
        "mamba_ssm_dtype": "float32",
        "rope_parameters": rope,
    }


def save_qwen3_5_moe(folder: Path, _kind: str = "qwen3_5_moe", **text_overrides: Any) -> Path:
    """Save one like Qwen/Qwen3.5-35B-A3B: each token passes through two of eight experts and the shared one."""
    experts: dict[str, Any] = {
        "model_type": "qwen3_5_moe_text",
        "moe_intermediate_size": 32,
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "shared_expert_intermediate_size": 48,
    }
    model = {"architectures": ["Qwen3_5MoeForConditionalGeneration"], "model_type": "qwen3_5_moe"}
    return save_qwen3_5(folder, model=model, **experts | text_overrides)


def _flat_config(
    architecture: str, model_type: str, vision: dict[str, Any], text_overrides: dict[str, Any]
) -> dict[str, Any]:
    return {
        "architectures": [architecture],
        "model_type": model_type,
        **TEXT,
        "sliding_window": 32768,
        "use_sliding_window": False,
        "max_window_layers": TEXT["num_hidden_layers"],
        "rope_theta": 1000000.0,
        "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
        **text_overrides,
        "vision_config": vision,
    }


def _preprocessor(processor_class: str) -> dict[str, Any]:
    return {
        "min_pixels": 56 * 56,
        "max_pixels": 28 * 28 * 64,
        "patch_size": 14,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": processor_class,
    }


def _save(
    folder: Path,
    config: dict[str, Any],
    preprocessor: dict[str, Any],
    video: dict[str, Any] | None = None,
    seed: int = 0,
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    ids = _save_tokenizer(folder)
    config |= {
        "vocab_size": len(ids),
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
        "bos_token_id": ids["<|endoftext|>"],
        "eos_token_id": ids["<|im_end|>"],
    }
    if "text_config" in config:
        config["text_config"]["vocab_size"] = config.pop("vocab_size")
    generation = {"eos_token_id": [ids["<|im_end|>"], ids["<|endoftext|>"]], "pad_token_id": ids["<|endoftext|>"]}
    files = {"config": config, "preprocessor_config": preprocessor, "generation_config": generation}
    files["video_preprocessor_config"] = video or {"min_pixels": 28 * 28 * 4, "max_pixels": 28 * 28 * 12}
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": CHAT_TEMPLATE}))
    torch.manual_seed(seed)
    model = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(folder))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:  # norms and biases, initialised with ones and zeros
                parameter += 0.2 * torch.randn_like(parameter)
    tied = model.config.tie_word_embeddings
    weights = {
        _published_key(name, config["model_type"]): _published_values(name, value, config["model_type"])
        for name, value in model.state_dict().items()
        if not (tied and name == "lm_head.weight")
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def _published_key(name: str, model_type: str) -> str:
    """Return a weight's name in files: transformers 4's for Qwen2-VL and 2.5-VL, today's for Qwen3-VL and Qwen3.5."""
    if model_type.startswith("qwen3"):
        return name
    return name.replace("model.language_model.", "model.").replace("model.visual.", "visual.")


def _published_values(name: str, value: Tensor, model_type: str) -> Tensor:
    """Return a weight as it stands in files: the experts of Qwen3-VL have their inputs in rows."""
    if model_type == "qwen3_vl_moe" and "experts" in name:
        value = value.transpose(1, 2)
    return value.contiguous().clone()


def _save_tokenizer(folder: Path) -> dict[str, int]:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=320, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "Qwen2Tokenizer",
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "unk_token": None,
        "additional_special_tokens": list(SPECIAL_TOKENS[1:]),
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return tokenizer.get_vocab()
