"""Write small LLaVA-HR checkpoints in the layout and weight names of the original code."""

import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaForCausalLM

from tests.support.checkpoints import IMAGE_SIZE, PATCH_SIZE, small_tokenizer, text_config

FAST, SLOW_WIDTHS, SLOW_DEPTHS = 128, (8, 12, 16, 24), (1, 1, 2, 1)
SLOW = SLOW_WIDTHS[-1]
NUM_FAST_LAYERS = 8


def save_llava_hr(
    folder: Path,
    kind: str = "llama",
    image_size: int = 256,
    slow: str = "convnext_large_mlp.clip_laion2b_ft_320",
    adapters: bool = True,
    **overrides: Any,
) -> Path:
    """Save a LLaVA-HR checkpoint: 64 tokens a picture at 256 pixels, 16 at 64; ``overrides`` set the text model."""
    tokenizer = small_tokenizer(eos_token="</s>", unk_token="<unk>")
    torch.manual_seed(0)
    text = text_config(kind, len(tokenizer), **overrides)
    weights = dict(LlamaForCausalLM(text).state_dict()) | vision_weights(adapters)
    width = text.hidden_size
    for index, shape in {0: (width, FAST), 2: (width, width)}.items():
        weights |= {
            f"model.mm_projector.{index}.weight": normal(*shape),
            f"model.mm_projector.{index}.bias": normal(width),
        }
    config = text.to_dict() | {
        "model_type": "llava",
        "architectures": ["LlavaLlamaForCausalLM"],
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "mm_vision_tower": "openai/clip-vit-large-patch14-336",
        "vision_tower_slow": slow,
        "is_multipath_encoder": True,
        "freeze_vision": not adapters,
        "input_image_size": image_size,
        "image_aspect_ratio": "pad",
        "mm_projector_type": "mlp2x_gelu",
        "mm_hidden_size": FAST,
        "mm_vision_select_layer": -2,
        "mm_use_im_start_end": False,
        "mm_use_im_patch_token": False,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer.save_pretrained(folder)
    save_file({name: value.contiguous() for name, value in weights.items()}, folder / "model.safetensors")
    return folder


def vision_weights(adapters: bool) -> dict[str, Tensor]:
    """Return random weights of both vision towers and of the modules that join them."""
    tower = "model.vision_tower."
    clip = CLIPVisionModel(
        CLIPVisionConfig(
            hidden_size=FAST,
            intermediate_size=96,
            num_hidden_layers=NUM_FAST_LAYERS,
            num_attention_heads=FAST // 64,
            image_size=IMAGE_SIZE,
            patch_size=PATCH_SIZE,
            initializer_range=0.2,
        )
    )
    prefix = f"{tower}fast_vision_tower.vision_tower.vision_model."
    weights = {prefix + name: value.clone() for name, value in clip.state_dict().items()}
    weights |= {f"{tower}slow_vision_tower.vision_tower.{name}": value for name, value in convnext_weights().items()}
    for index in range(3 if adapters else 0):
        shapes = {
            "slow_conv": (SLOW, SLOW, 1, 1),
            "slow_proj": (FAST, SLOW, 1, 1),
            "fast_conv": (FAST, 1, 7, 7),
            "fast_proj": (FAST, FAST, 1, 1),
            "gate.0": (FAST // 2, 2 * FAST),
            "gate.2": (1, FAST // 2),
        }
        weights |= layers(f"{tower}align_stages_latent.{index}.", shapes)
    return weights | layers(f"{tower}align_stages.0.", {"fast_proj": (FAST, FAST), "slow_proj": (FAST, SLOW)})


def convnext_weights() -> dict[str, Tensor]:
    """Return weights named as in timm, except that a block's scale is called weight; with a head that is not used."""
    weights = layers("", {"stem.0": (SLOW_WIDTHS[0], 3, 4, 4)}) | norm("stem.1", SLOW_WIDTHS[0])
    for stage, (width, depth) in enumerate(zip(SLOW_WIDTHS, SLOW_DEPTHS, strict=True)):
        if stage > 0:
            before = SLOW_WIDTHS[stage - 1]
            weights |= norm(f"stages.{stage}.downsample.0", before)
            weights |= layers(f"stages.{stage}.", {"downsample.1": (width, before, 2, 2)})
        for block in range(depth):
            name = f"stages.{stage}.blocks.{block}"
            shapes = {"conv_dw": (width, 1, 7, 7), "mlp.fc1": (4 * width, width), "mlp.fc2": (width, 4 * width)}
            weights |= layers(f"{name}.", shapes) | norm(f"{name}.norm", width)
            weights[f"{name}.weight"] = normal(width)
    return weights | norm("head.norm", SLOW) | layers("head.", {"pre_logits.fc": (SLOW, SLOW)})


def layers(prefix: str, shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Return biases and weights that preserve the magnitude of activations."""
    weights = {name: torch.randn(*shape) / math.sqrt(math.prod(shape[1:])) for name, shape in shapes.items()}
    biases = {f"{prefix}{name}.bias": normal(shape[0]) for name, shape in shapes.items()}
    return {f"{prefix}{name}.weight": weight for name, weight in weights.items()} | biases


def norm(name: str, width: int) -> dict[str, Tensor]:
    return {f"{name}.weight": 1 + normal(width), f"{name}.bias": normal(width)}


def normal(*shape: int) -> Tensor:
    return 0.2 * torch.randn(*shape)
