"""Write small random PaliGemma checkpoints in the published layout."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForImageTextToText

from tests.support.checkpoints import published_key, small_tokenizer

# 4 x 4 patches.
IMAGE_SIZE, SIDE = 56, 4


def save_paligemma(folder: Path, kind: str = "gemma", **text_overrides: Any) -> Path:
    """Save one like google/paligemma-3b-mix-224, or of the kind gemma2, like paligemma2-3b-mix-224."""
    tokenizer = small_tokenizer("<bos>", "<eos>", "<unk>", image_token="<image>")
    ids = tokenizer.get_vocab()
    text: dict[str, Any] = {
        "model_type": kind,
        "bos_token_id": ids["<bos>"],
        "eos_token_id": ids["<eos>"],
        "head_dim": 16,
        "hidden_size": 64,
        "initializer_range": 0.2,
        "intermediate_size": 96,
        "max_position_embeddings": 2048,
        "num_attention_heads": 4,
        "num_hidden_layers": 8,
        "num_key_value_heads": 1,
        "pad_token_id": ids["<pad>"],
        "vocab_size": len(tokenizer),
    }
    if kind == "gemma2":
        # Small caps, so that they change the answers of this model.
        caps = {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}
        text |= {"num_key_value_heads": 2, "query_pre_attn_scalar": 16, "sliding_window": 24, **caps}
    config = {
        "architectures": ["PaliGemmaForConditionalGeneration"],
        "model_type": "paligemma",
        "image_token_index": ids["<image>"],
        "projection_dim": 64,
        "hidden_size": 64,
        "text_config": text | text_overrides,
        "vision_config": {
            "model_type": "siglip_vision_model",
            "hidden_size": 32,
            "image_size": IMAGE_SIZE,
            "initializer_range": 0.2,
            "intermediate_size": 48,
            "num_attention_heads": 2,
            "num_hidden_layers": 3,
            "patch_size": IMAGE_SIZE // SIDE,
            "projection_dim": 64,
            "vision_use_head": False,
        },
    }
    preprocessor = {
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_processor_type": "SiglipImageProcessor",
        "image_seq_length": SIDE**2,
        "image_std": [0.5, 0.5, 0.5],
        "processor_class": "PaliGemmaProcessor",
        "resample": 3,
        "rescale_factor": 0.00392156862745098,
        "size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE},
    }
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder)
    generation = {"bos_token_id": ids["<bos>"], "eos_token_id": ids["<eos>"], "pad_token_id": ids["<pad>"]}
    files = {"config": config, "preprocessor_config": preprocessor, "generation_config": generation}
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(folder))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                # Layer outputs must be as large as the scaled embeddings, or the tied head repeats the last token.
                parameter += 0.2 * torch.randn_like(parameter) + 20.0 * ("layernorm" in name and "language" in name)
    weights = {
        published_key(name): value.clone() for name, value in model.state_dict().items() if name != "lm_head.weight"
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder
