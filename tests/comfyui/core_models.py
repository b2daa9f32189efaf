"""Build small random language models from ComfyUI's own classes. It runs in ComfyUI's Python, not in pytest's.

ComfyUI fixes the sizes of its models in its code, so that a small model needs smaller sizes there: they are set on the
classes and tables of this process.
"""

import functools
import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from safetensors.torch import save_file

TEXT: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 8}
HEADS: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 2}
SIGLIP: dict[str, Any] = {"num_channels": 3, "hidden_act": "gelu_pytorch_tanh", "hidden_size": 32, "image_size": 112}
SIGLIP |= {"intermediate_size": 48, "model_type": "siglip_vision_model", "num_attention_heads": 2}
SIGLIP |= {"num_hidden_layers": 4, "patch_size": 14}
POOLED: dict[str, Any] = {
    "hidden_size": 32,
    "image_size": 96,
    "intermediate_size": 48,
    "num_attention_heads": 2,
    "head_dim": 16,
}
POOLED |= {"num_hidden_layers": 4, "patch_size": 16, "rms_norm_eps": 1e-6, "position_embedding_size": 64}
POOLED |= {"pooling_kernel_size": 3}
UNIFIED: dict[str, Any] = {"model_patch_size": 48, "patch_size": 16, "pooling_kernel_size": 3, "mm_embed_dim": 32}
UNIFIED |= {"mm_posemb_size": 64, "output_proj_dims": 32, "rms_norm_eps": 1e-6}


def load_pack(comfyui: str, root: str) -> ModuleType:
    """Set ComfyUI up on the CPU without its server, and return our pack as ComfyUI loads it."""
    sys.argv = ["main.py", "--cpu"]
    sys.path.insert(0, comfyui)
    import comfy.options

    comfy.options.enable_args_parsing()
    from comfy import model_management  # noqa: F401

    spec = importlib.util.spec_from_file_location("pack", f"{root}/__init__.py")
    assert spec is not None
    assert spec.loader is not None
    pack = importlib.util.module_from_spec(spec)
    sys.modules["pack"] = pack
    spec.loader.exec_module(pack)
    return pack


def small_clip(kind: str, dtype: torch.dtype = torch.float32, seed: int = 0) -> Any:
    """Return ComfyUI's CLIP with random weights.

    Parameters
    ----------
    kind : qwen3_vl, qwen3_5, qwen2_5_vl, gemma3, gemma4 (keys shared by layers), gemma4_31b (pictures seen both ways),
        gemma4_unified (no tower) or text (no pictures).
    """
    import comfy.sd

    target, name, sizes = BUILDERS[kind]()
    with torch.device("meta"):  # the sizes reach the model under its name only
        count = sum(
            weight.numel() for weight in target.clip(model_options={f"{name}_model_config": sizes}).parameters()
        )
    assert count < 3e7, f"{kind} is not small: {count} weights"
    clip = comfy.sd.CLIP(target, model_options={f"{name}_model_config": sizes, "dtype": dtype})
    fill(clip.cond_stage_model, seed)
    return clip


def save_checkpoint(clip: Any, family: Any, folder: Path) -> None:
    """Save the weights of a CLIP in the layout of published checkpoints, with config and processor of our family."""
    (encoder,) = clip.cond_stage_model.children()
    weights = {}
    for name, weight in encoder.transformer.state_dict().items():
        published = (
            f"model.{name}" if name.startswith("visual.") else name.replace("model.", "model.language_model.", 1)
        )
        weights[published.replace("model.language_model.lm_head", "lm_head")] = weight.contiguous()
    if "lm_head.weight" not in weights:  # the head is the table of tokens
        weights["lm_head.weight"] = weights["model.language_model.embed_tokens.weight"].clone()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    processor = family.processor
    for part in (processor.tokenizer, processor.image_processor, family.model.config, family.model.generation_config):
        part.save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(processor.chat_template)


def loaded_model(folder: str) -> Any:
    """Return what TOPS Load Model gives of a checkpoint."""
    settings = importlib.import_module("tops_engine.settings")
    return importlib.import_module("pack.nodes.models").TopsModel(
        settings.ModelSpec(model=folder, dtype="float32", device="cpu")
    )


def read_small_files() -> None:
    """Make ComfyUI's Load CLIP read the small files of ``tests/comfyui/small_files.py`` as Qwen3-VL.

    It tells the 8B model by what the file lacks of the 4B one, and takes the sizes from its tables.
    """
    try:
        from comfy.text_encoders import qwen3vl
    except ImportError:
        return  # this version of ComfyUI has no Qwen3-VL
    qwen3vl.QWEN3VL_CONFIGS["qwen3vl_8b"] = functools.partial(qwen3vl.Qwen3VL_8BConfig, **TEXT, **HEADS)
    vision = {"hidden_size": 32, "intermediate_size": 48, "depth": 4, "deepstack_visual_indexes": [0, 1, 2]}
    qwen3vl.QWEN3VL_VISION["qwen3vl_8b"] = vision | {"num_heads": 2, "num_position_embeddings": 36}


def fill(model: torch.nn.Module, seed: int) -> None:
    """Write random weights, large enough for varied answers."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in (*model.named_parameters(), *model.named_buffers()):
            is_norm = "norm" in name and name.endswith("weight")
            if "inv_freq" in name or name.endswith(("_max", "_min")) or not weight.is_floating_point():
                continue
            if is_norm or name.endswith("layer_scalar"):
                weight.copy_(1 + 0.1 * torch.randn(weight.shape, generator=generator))
            elif "embed_tokens" in name:
                weight.copy_(0.02 * torch.randn(weight.shape, generator=generator))
            elif name.endswith("bias"):
                weight.copy_(0.1 * torch.randn(weight.shape, generator=generator))
            else:
                weight.copy_(0.2 * torch.randn(weight.shape, generator=generator))


class NumberTokenizer:
    """Stands for the tokenizers that come with the files of models: random tokens, written as numbers."""

    def tokenize_with_weights(self, _text: str, _ids: bool = False, image: Any = None, **_: Any) -> dict[str, Any]:
        pictures = [] if image is None else [_scaled(one[None]) for one in image]
        return {"small": tokens_with_pictures(pictures)}

    def decode(self, token_ids: list[int], **_: Any) -> str:
        return " ".join(map(str, token_ids))


def _scaled(picture: torch.Tensor) -> torch.Tensor:
    """Bring a picture [1, H, W, C] to the size of 2 x 3 tokens of Gemma 4, as its tokenizer does."""
    return torch.nn.functional.interpolate(picture.movedim(-1, 1), (96, 144)).movedim(1, -1)


def _target(clip: Any, tokenizer: Any = None) -> SimpleNamespace:
    return SimpleNamespace(params={}, clip=clip, tokenizer=tokenizer or (lambda **_: NumberTokenizer()))


def _qwen3_vl() -> tuple[Any, str, dict[str, Any]]:
    from comfy.text_encoders import qwen3vl

    vision = {"hidden_size": 32, "intermediate_size": 48, "depth": 4, "deepstack_visual_indexes": [0, 1, 2]}
    qwen3vl.QWEN3VL_VISION["qwen3vl_4b"] = vision
    qwen3vl.QWEN3VL_VISION_COMMON["num_heads"] = 2
    make = qwen3vl.te(model_type="qwen3vl_4b"), qwen3vl.tokenizer("qwen3vl_4b")
    return _target(*make), "qwen3vl_4b", TEXT | HEADS


def _qwen3_5() -> tuple[Any, str, dict[str, Any]]:
    from comfy.text_encoders import qwen35, qwen_image

    vision = {"hidden_size": 32, "intermediate_size": 48, "depth": 4, "num_heads": 2}
    linear = {"linear_num_key_heads": 2, "linear_num_value_heads": 2}
    linear |= {"linear_key_head_dim": 16, "linear_value_head_dim": 16}
    qwen35.QWEN35_MODELS["qwen35_2b"] = TEXT | HEADS | linear | {"vocab_size": 151936, "vision": vision}
    # The tokenizer of Qwen2.5 stands for that of Qwen3.5, which some copies of ComfyUI lack.
    return _target(qwen35.te(model_type="qwen35_2b"), qwen_image.QwenImageTokenizer), "qwen35_2b", {}


def _qwen2_5_vl() -> tuple[Any, str, dict[str, Any]]:
    from comfy.text_encoders import llama, qwen_image, qwen_vl

    class SmallTower(qwen_vl.Qwen2VLVisionTransformer):  # type: ignore[misc]
        def __init__(self, hidden_size: int, output_hidden_size: int, **others: Any) -> None:
            super().__init__(32, output_hidden_size, 48, num_heads=2, num_layers=8, **others)

    llama.qwen_vl = SimpleNamespace(**vars(qwen_vl) | {"Qwen2VLVisionTransformer": SmallTower})
    make = qwen_image.te(), qwen_image.QwenImageTokenizer
    return _target(*make), "qwen25_7b", TEXT | HEADS


def _gemma3() -> tuple[Any, str, dict[str, Any]]:
    from comfy.text_encoders import llama, lumina2

    llama.Gemma3_4B_Vision_Config.vision_config = SIGLIP
    llama.Gemma3_4B_Vision_Config.mm_tokens_per_image = 16
    llama.Gemma3_4B_Config.sliding_attention = [96, 96, False]
    make = lumina2.te(model_type="gemma3_4b_vision")
    return _target(make), "gemma3_4b_vision", TEXT | HEADS | {"vocab_size": 1024}


def _gemma4(variant: str, **changes: Any) -> tuple[Any, str, dict[str, Any]]:
    from comfy.text_encoders import gemma4

    config = getattr(gemma4, f"{variant}_Config")
    small = {"vision_config": POOLED, "audio_config": None, "head_dim": 16, "global_head_dim": 32}
    for name, value in (small | {"sliding_attention": [96, 96, False]} | changes).items():
        setattr(config, name, value)
    model = gemma4.Gemma4_12B if changes.get("vision_config") is UNIFIED else gemma4._make_variant(config)
    sizes = TEXT | HEADS | {"vocab_size": 1024, "hidden_size_per_layer_input": changes.get("per_layer", 0)}
    sizes["num_kv_shared_layers"] = changes.get("shared", 0)
    return _target(gemma4.gemma4_te(model_class=model)), "gemma4", sizes


def _gemma4_e2b() -> tuple[Any, str, dict[str, Any]]:
    return _gemma4("Gemma4_E2B", per_layer=8, shared=4)


def _gemma4_31b() -> tuple[Any, str, dict[str, Any]]:
    return _gemma4("Gemma4_31B")


def _gemma4_unified() -> tuple[Any, str, dict[str, Any]]:
    audio = {"audio_samples_per_token": 640, "output_proj_dims": 640, "rms_norm_eps": 1e-6}
    return _gemma4("Gemma4_12B", vision_config=UNIFIED, audio_config=audio, suppress_tokens=[])


def _text() -> tuple[Any, str, dict[str, Any]]:
    from comfy.text_encoders import z_image

    return _target(z_image.te(), z_image.ZImageTokenizer), "qwen3_4b", TEXT | HEADS


BUILDERS = {
    "qwen3_vl": _qwen3_vl,
    "qwen3_5": _qwen3_5,
    "qwen2_5_vl": _qwen2_5_vl,
    "gemma3": _gemma3,
    "gemma4": _gemma4_e2b,
    "gemma4_31b": _gemma4_31b,
    "gemma4_unified": _gemma4_unified,
    "text": _text,
}


def tokens_with_pictures(
    pictures: list[torch.Tensor], num_text: int = 12, seed: int = 0
) -> list[list[tuple[Any, float]]]:
    """Return a prompt of random text around pictures, as ComfyUI's tokenizers give it."""
    ids = torch.randint(200, 1000, (num_text * (len(pictures) + 1),), generator=torch.Generator().manual_seed(seed))
    words = [(int(token), 1.0) for token in ids]
    prompt: list[tuple[Any, float]] = words[:num_text]
    for number, picture in enumerate(pictures, 1):
        prompt += [({"type": "image", "data": picture}, 1.0), *words[number * num_text : (number + 1) * num_text]]
    return [prompt]
