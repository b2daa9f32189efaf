"""Write small random checkpoints in the exact published layouts, without downloads."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    GptOssConfig,
    GraniteConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessorPil,
    LlavaNextProcessor,
    LlavaProcessor,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
    SiglipImageProcessorPil,
    SiglipVisionConfig,
)

IMAGE_SIZE, PATCH_SIZE = 56, 14
NUM_PATCHES = (IMAGE_SIZE // PATCH_SIZE) ** 2

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'].upper() + ': ' }}"
    "{% for part in message['content'] %}{{ '<image>\n' if part['type'] == 'image' else part['text'] }}{% endfor %}"
    "{{ ' ' if message['role'] != 'assistant' else '</s>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)

LLAMA3_TOKENS = {
    "bos_token": "<|begin_of_text|>",
    "eos_token": "<|eot_id|>",
    "image_token": "<image>",
    "start_header_token": "<|start_header_id|>",
    "end_header_token": "<|end_header_id|>",
}
LLAMA3_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}"
    "{% for part in message['content'] %}{{ '<image>\n' if part['type'] == 'image' else part['text'] }}{% endfor %}"
    "{{ '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)

CORPUS = ["USER: What is shown in this picture? ASSISTANT: A red circle, two digits and the word HELLO. \n"] * 4


def small_tokenizer(
    bos_token: str | None = "<s>", eos_token: str = "</s>", unk_token: str | None = None, **named: str
) -> PreTrainedTokenizerFast:
    """Build a byte-level tokenizer with LLaVA's special tokens, or with others by name (``start_image_token`` ...)."""
    named = named if named or unk_token else {"image_token": "<image>"}
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = [token for token in (bos_token, eos_token, "<pad>", unk_token) if token] + list(named.values())
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(vocab_size=320, special_tokens=special, initial_alphabet=alphabet, show_progress=False),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=bos_token,
        eos_token=eos_token,
        unk_token=unk_token,
        pad_token="<pad>",
        extra_special_tokens=named,
    )


def text_config(kind: str, vocab_size: int, **overrides: Any) -> PreTrainedConfig:
    sizes: dict[str, Any] = {
        "vocab_size": vocab_size,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 8,
        "num_attention_heads": 4,
        "num_key_value_heads": 4 if kind == "llama" else 2,
        "max_position_embeddings": 2048,
        # Large enough that random weights give confident, varied answers.
        "initializer_range": 0.2,
        "tie_word_embeddings": False,
    }
    if kind == "mistral":
        sizes["sliding_window"] = None
    if kind in ("qwen3", "qwen3_moe", "gpt_oss"):
        sizes["head_dim"] = 16
    if kind == "qwen3_moe":
        sizes |= {"moe_intermediate_size": 24, "num_experts": 8, "num_experts_per_tok": 2, "norm_topk_prob": True}
    if kind == "gpt_oss":
        sizes |= {"intermediate_size": 24, "num_local_experts": 8, "num_experts_per_tok": 2, "sliding_window": 16}
    if kind == "granite":
        multipliers = {"embedding_multiplier": 3.0, "attention_multiplier": 0.1, "residual_multiplier": 0.5}
        sizes |= {"num_key_value_heads": 2, "logits_scaling": 8.0, **multipliers}
    if kind == "llama3":
        sizes |= {"rope_theta": 500000.0, "num_key_value_heads": 2}
    configs = {
        "llama": LlamaConfig,
        "llama3": LlamaConfig,
        "mistral": MistralConfig,
        "qwen2": Qwen2Config,
        "qwen3": Qwen3Config,
        "qwen3_moe": Qwen3MoeConfig,
        "gpt_oss": GptOssConfig,
        "granite": GraniteConfig,
    }
    return configs[kind](**(sizes | overrides))


def vision_config() -> CLIPVisionConfig:
    return CLIPVisionConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=4,
        num_attention_heads=2,
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
        projection_dim=32,
        initializer_range=0.2,
        initializer_factor=1.0,
    )


def save_llava(folder: Path, kind: str = "llama", old_layout: bool = True, **text_overrides: Any) -> Path:
    """Save a LLaVA-1.5 checkpoint, by default in the key layout that most files on the hub have."""
    tokenizer = small_tokenizer()
    config = LlavaConfig(**_config(tokenizer, kind, text_overrides), image_seq_length=NUM_PATCHES)
    processor = LlavaProcessor(CLIPImageProcessorPil(**IMAGE_PROCESSOR), tokenizer, **PROCESSOR)
    return _save(folder, LlavaForConditionalGeneration, config, processor, old_layout)


def save_siglip_llava(folder: Path, kind: str = "llama", old_layout: bool = True, **text_overrides: Any) -> Path:
    """Save a LLaVA checkpoint whose vision tower has no [CLS], like llava-hf/llava-interleave-qwen-0.5b-hf."""
    tokenizer = small_tokenizer()
    no_cls = {"vision_feature_select_strategy": "full"}
    sizes = {name: getattr(vision_config(), name) for name in VISION_SIZES}
    parts = _config(tokenizer, kind, text_overrides) | {"vision_config": SiglipVisionConfig(**sizes)} | no_cls
    config = LlavaConfig(**parts, image_seq_length=NUM_PATCHES)
    image_processor = SiglipImageProcessorPil(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE})
    processor = LlavaProcessor(image_processor, tokenizer, **PROCESSOR | no_cls | {"num_additional_image_tokens": 0})
    return _save(folder, LlavaForConditionalGeneration, config, processor, old_layout)


def save_llava_next(folder: Path, kind: str = "llama", old_layout: bool = True, **text_overrides: Any) -> Path:
    """Save a LLaVA-NeXT checkpoint with the published tile grids, scaled down; ``llama3`` sets that chat format."""
    tokenizer = small_tokenizer(**LLAMA3_TOKENS) if kind == "llama3" else small_tokenizer()
    pinpoints = [[56, 112], [112, 56], [112, 112], [168, 56], [56, 168]]
    config = LlavaNextConfig(**_config(tokenizer, kind, text_overrides), image_grid_pinpoints=pinpoints)
    image_processor = LlavaNextImageProcessorPil(**IMAGE_PROCESSOR, image_grid_pinpoints=pinpoints)
    template = {"chat_template": LLAMA3_TEMPLATE} if kind == "llama3" else {}
    processor = LlavaNextProcessor(image_processor, tokenizer, **PROCESSOR | template)
    return _save(folder, LlavaNextForConditionalGeneration, config, processor, old_layout)


def save_granite_vision(folder: Path, kind: str = "granite", **text_overrides: Any) -> Path:
    """Save one like ibm-granite/granite-vision-3.3-2b: SigLIP, of which three layers feed the projector."""
    tokenizer = small_tokenizer()
    pinpoints = [[56, 112], [112, 56], [112, 112]]
    whole = {"vision_feature_select_strategy": "full"}
    sizes = {name: getattr(vision_config(), name) for name in VISION_SIZES}
    parts = _config(tokenizer, kind, text_overrides) | {"vision_config": SiglipVisionConfig(**sizes)} | whole
    config = LlavaNextConfig(**parts | {"vision_feature_layer": [-4, -2, -1]}, image_grid_pinpoints=pinpoints)
    image_processor = LlavaNextImageProcessorPil(**IMAGE_PROCESSOR, image_grid_pinpoints=pinpoints)
    options = PROCESSOR | whole | {"num_additional_image_tokens": 0}
    processor = LlavaNextProcessor(image_processor, tokenizer, **options)
    return _save(folder, LlavaNextForConditionalGeneration, config, processor, old_layout=True)


VISION_SIZES = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "image_size",
    "patch_size",
)
IMAGE_PROCESSOR: dict[str, Any] = {
    "size": {"shortest_edge": IMAGE_SIZE},
    "crop_size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE},
}
PROCESSOR: dict[str, Any] = {
    "patch_size": PATCH_SIZE,
    "vision_feature_select_strategy": "default",
    "num_additional_image_tokens": 1,
    "chat_template": CHAT_TEMPLATE,
}


def _config(tokenizer: PreTrainedTokenizerFast, kind: str, text_overrides: dict[str, Any]) -> dict[str, Any]:
    return {
        "vision_config": vision_config(),
        "text_config": text_config(kind, **{"vocab_size": len(tokenizer)} | text_overrides),
        "image_token_index": tokenizer.convert_tokens_to_ids("<image>"),
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
    }


def _save(folder: Path, model_class: Any, config: Any, processor: Any, old_layout: bool) -> Path:
    tokenizer = processor.tokenizer
    torch.manual_seed(0)
    model = model_class(config).eval()
    model.generation_config.bos_token_id = tokenizer.bos_token_id
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    if old_layout:
        weights = {published_key(name): value.clone() for name, value in model.state_dict().items()}
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def published_experts(name: str, value: Tensor) -> list[tuple[str, Tensor]]:
    """Return a weight as it stands in files in which each expert has three matrices of its own."""
    prefix, found, kind = name.partition(".experts.")
    if not found:
        return [(name, value.clone())]
    parts = {"down_proj": ["down_proj"], "gate_up_proj": ["gate_proj", "up_proj"]}[kind]
    return [
        (f"{prefix}.experts.{number}.{part}.weight", matrix.clone())
        for number, expert in enumerate(value)
        for part, matrix in zip(parts, expert.chunk(len(parts)), strict=True)
    ]


def published_key(name: str) -> str:
    """Return the name of a weight in files written by transformers 4."""
    for now, then in {
        "model.language_model.": "language_model.model.",
        "lm_head.": "language_model.lm_head.",
        "model.vision_tower.": "vision_tower.vision_model.",
        "model.multi_modal_projector.": "multi_modal_projector.",
        "model.image_newline": "image_newline",
        "model.vision_resampler.": "vision_resampler.",
    }.items():
        if name.startswith(now):
            return then + name.removeprefix(now)
    raise AssertionError(f"no published name for {name}")
