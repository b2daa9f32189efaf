"""Write small random Mistral Small 3.1 and Ministral 3 checkpoints in the published layout."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForImageTextToText

from tests.support.checkpoints import published_key, small_tokenizer

# As published, without its default system prompt and its tools.
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}{{ '[INST]' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for block in message['content'] %}{% if block['type'] == 'text' %}{{ block['text'] }}"
    "{% elif block['type'] in ['image', 'image_url'] %}{{ '[IMG]' }}"
    "{% else %}{{ raise_exception('Only text and image blocks are supported in message content!') }}{% endif %}"
    "{% endfor %}{% endif %}{{ '[/INST]' }}"
    "{% elif message['role'] == 'system' %}{{ '[SYSTEM_PROMPT]' }}"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{{ message['content'][0]['text'] }}{% endif %}{{ '[/SYSTEM_PROMPT]' }}"
    "{% elif message['role'] == 'assistant' %}"
    "{% if message['content'] is string %}{{ message['content'] + eos_token }}"
    "{% else %}{{ message['content'][0]['text'] + eos_token }}{% endif %}"
    "{% else %}{{ raise_exception('Only user, system and assistant roles are supported!') }}{% endif %}{% endfor %}"
)
TOKENS = {
    "start_of_instruction": "[INST]",
    "end_of_instruction": "[/INST]",
    "start_of_system": "[SYSTEM_PROMPT]",
    "end_of_system": "[/SYSTEM_PROMPT]",
    "image_token": "[IMG]",
    "image_break_token": "[IMG_BREAK]",
    "image_end_token": "[IMG_END]",
}
#: Patches of 14 pixels, 2 x 2 of them a token; the longest edge is 7 tokens.
PATCH_SIZE, MERGE, LONGEST_EDGE = 14, 2, 196

TEXT: dict[str, Any] = {
    "attention_dropout": 0.0,
    "head_dim": 32,
    "hidden_act": "silu",
    "hidden_size": 64,
    "initializer_range": 0.2,
    "intermediate_size": 96,
    "max_position_embeddings": 2048,
    "num_attention_heads": 4,
    "num_hidden_layers": 8,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-05,
    "sliding_window": None,
    "use_cache": True,
}
#: Of Ministral 3. Lengths are scaled down, so that prompts of tests are longer than that of pretraining.
YARN = {
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "factor": 128.0,
    "llama_4_scaling_beta": 0.5,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "original_max_position_embeddings": 16,
    "rope_theta": 1000000.0,
    "rope_type": "yarn",
    "type": "yarn",
}


def save_mistral3(folder: Path, kind: str = "mistral", **text_overrides: Any) -> Path:
    """Save one like mistralai/Mistral-Small-3.1-24B-Instruct-2503, or like Ministral-3-3B (``ministral3``)."""
    tokenizer = small_tokenizer("<s>", "</s>", "<unk>", **TOKENS)
    ids = tokenizer.get_vocab()
    special: dict[str, Any] = {"rope_parameters": YARN} if kind == "ministral3" else {"rope_theta": 1000000000.0}
    top: dict[str, Any] = {"tie_word_embeddings": True} if kind == "ministral3" else {}
    text = TEXT | special | top | {"model_type": kind, "vocab_size": len(tokenizer)} | text_overrides
    config = {
        "architectures": ["Mistral3ForConditionalGeneration"],
        "image_token_index": ids["[IMG]"],
        "model_type": "mistral3",
        "multimodal_projector_bias": False,
        "projector_hidden_act": "gelu",
        "spatial_merge_size": MERGE,
        "text_config": text,
        "vision_config": {
            "attention_dropout": 0.0,
            "head_dim": 16,
            "hidden_act": "silu",
            "hidden_size": 32,
            "image_size": LONGEST_EDGE,
            "initializer_range": 0.2,
            "intermediate_size": 48,
            "model_type": "pixtral",
            "num_attention_heads": 2,
            "num_channels": 3,
            "num_hidden_layers": 3,
            "patch_size": PATCH_SIZE,
            "rope_theta": 10000.0,
        },
        "vision_feature_layer": -1,
    }
    preprocessor = {
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_processor_type": "PixtralImageProcessor",
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "patch_size": PATCH_SIZE,
        "processor_class": "PixtralProcessor",
        "resample": 3,
        "rescale_factor": 0.00392156862745098,
        "size": {"longest_edge": LONGEST_EDGE},
    }
    processor = {
        "image_break_token": "[IMG_BREAK]",
        "image_end_token": "[IMG_END]",
        "image_token": "[IMG]",
        "patch_size": PATCH_SIZE,
        "processor_class": "PixtralProcessor",
        "spatial_merge_size": MERGE,
    }
    generation = {"bos_token_id": ids["<s>"], "eos_token_id": ids["</s>"], "pad_token_id": ids["<pad>"]}
    tokenizer.save_pretrained(folder)
    files = {
        "config": config | top,
        "preprocessor_config": preprocessor,
        "processor_config": processor,
        "generation_config": generation,
        "chat_template": {"chat_template": CHAT_TEMPLATE},
    }
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    _save_weights(folder, tied=bool(top))
    return folder


def _save_weights(folder: Path, tied: bool) -> None:
    torch.manual_seed(2)
    model = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(folder))
    with torch.no_grad():
        if not tied:
            # Transformers ties them where the config does not say; the published file has both.
            model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight) * 0.2)
    weights = {
        published_key(name).replace("vision_tower.vision_model.", "vision_tower."): value.clone()
        for name, value in model.state_dict().items()
        if not (tied and name == "lm_head.weight")
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
