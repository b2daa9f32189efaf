"""Say in one sentence why a checkpoint cannot be run, and which one can."""

from pathlib import Path
from typing import Any

from transformers.utils import cached_file

from tops_engine.errors import listed, quote
from tops_engine.families import FAMILIES

#: The family, or the checkpoint, that is nearest to model types that begin so; the first match counts.
NEAREST = {
    "granite": "ibm-granite/granite-vision-3.3-2b",
    "aya": "aya_vision",
    "cohere": "cohere2_vision",
    "perception_lm": "llava_onevision",
    "qwen3_5": "qwen3_5",
    "qwen3": "qwen3_vl",
    "qwen2_5": "qwen2_5_vl",
    "qwen": "qwen2_5_vl",
    "gemma4": "gemma4",
    "paligemma": "paligemma",
    "gemma": "gemma3",
    "mistral": "mistral3",
    "ministral": "mistral3",
    "mixtral": "mistral3",
    "pixtral": "mistral3",
    "internvl": "internvl",
    "idefics": "idefics3",
    "smol": "smolvlm",
    "glm": "glm4v",
    "chatglm": "glm4v",
    "lfm2": "lfm2_vl",
    "minicpm": "minicpmv4_6",
    "llava": "llava_next",
    "llama": "llava_next",
    "mllama": "llava_next",
    "vipllava": "llava_next",
    "fast_vlm": "llava_onevision",
}
TIMM = "whose vision tower comes from timm, which needs torchvision; the engine runs without both"
#: What keeps model types from running that transformers has, as a clause behind "model".
WHY = {
    "fast_vlm": TIMM,
    "perception_lm": TIMM,
    "gemma4_unified": "which reads pixels without a vision tower",
    "granite4_vision": "which adds the features of a picture in the middle of the decoder, where the engine does not",
    "molmo2": "which pools patches by attention, from which the engine does not read the relevance of a token yet",
    "phi4_multimodal": "whose decoder switches its weights (LoRA) for prompts with pictures, which the engine does not",
}

#: The family to name for all other model types.
USUAL = "qwen3_vl"

#: Model types that give vectors, not text, whatever their classes are called.
EMBEDDING_TYPES = frozenset({"bert", "clip", "siglip", "siglip2", "modernbert", "roberta", "xlm-roberta", "mpnet"})

# InternVL's original checkpoints that have native ones, by the end of their names.
INTERNVL_NATIVE = {"InternVL3_5-": "-HF", "InternVL3-": "-hf"}


def other_format(name: str, source: str, revision: str | None) -> str | None:
    """Return why a checkpoint without ``config.json`` or safetensors cannot be run; None if that is not known.

    Parameters
    ----------
    name : as the user gave it.
    source : hub id or folder.
    """
    title = quote(name)
    if _is_gguf(name, source):
        return (
            f"{title} holds GGUF weights, which the engine does not read; name the safetensors checkpoint that they "
            "were made from, with quantization 4bit for as little memory."
        )
    if _has_file(source, "model_index.json", revision):
        return (
            f"{title} is a diffusion pipeline, which makes pictures and answers no questions; name a vision-language "
            f"model, such as {_checkpoint(USUAL)}."
        )
    return None


def unsupported(name: str, source: str, revision: str | None, config: dict[str, Any]) -> str:
    """Return why no family runs the checkpoint with this ``config.json``, and which checkpoint is nearest.

    Parameters
    ----------
    name : as the user gave it.
    source : hub id or folder.
    """
    model_type = str(config.get("model_type"))
    title, kind = quote(name), quote(model_type)
    if "_class_name" in config:
        return (
            f"{title} is a part of a diffusion pipeline ({config['_class_name']}), which answers no questions; name a "
            f"vision-language model, such as {_checkpoint(USUAL)}."
        )
    nearest = f"the nearest that works is {_nearest(name, model_type)}"
    if "mm_vision_tower" in config:
        return (
            f"{title} has the layout of the original LLaVA code, of which LLaVA-HR and LLaVA-Video are read; "
            f"{nearest}, in the layout of transformers."
        )
    if "auto_map" in config and model_type not in FAMILIES:
        return (
            f"{title} ({kind}) needs code from its repository (trust_remote_code), which is never executed; "
            f"{nearest}, which transformers runs natively."
        )
    if _embeds(source, revision, config):
        return f"{title} is an embedding model ({kind}), which writes no answers; {nearest}."
    if "vision_config" not in config and _writes_text(config):
        return f"{title} is a text-only model ({kind}) and sees no pictures; {nearest}."
    return (
        f"{title} is a {kind} model{f', {WHY[model_type]}' if model_type in WHY else ''}; supported are "
        f"{listed(FAMILIES)}, in the layout of transformers "
        f"(often published under names that end in -hf), and {nearest}."
    )


def lacking_weights(name: str, missing: list[str], model: Any) -> str:
    """Return the sentence for a checkpoint that lacks weights of a model."""
    title = quote(name)
    count = f"{len(missing)} weights, such as {missing[0]}"
    of_text = ("model.language_model.", "model.text_model.", "lm_head.")
    of_tower = {weight for weight, _ in model.named_parameters() if not weight.startswith(of_text)}
    if of_tower and of_tower <= set(missing):
        return (
            f"The checkpoint {title} comes without its vision tower (it lacks {count}), so it sees no pictures; load "
            "the complete checkpoint that it was made from."
        )
    return f"The checkpoint {title} lacks {count}."


def _nearest(name: str, model_type: str) -> str:
    if model_type == "internvl_chat":
        base = name.rpartition("/")[2]
        for start, end in INTERNVL_NATIVE.items():
            native = f"OpenGVLab/{base}{end}"
            if base.startswith(start) and native in FAMILIES["internvl"].checkpoints["internvl"]:
                return native
    family = next((family for start, family in NEAREST.items() if model_type.startswith(start)), USUAL)
    return family if "/" in family else _checkpoint(family)


def _checkpoint(model_type: str) -> str:
    """Return the checkpoint of a family to name: one of middle size."""
    published = FAMILIES[model_type].checkpoints[model_type]
    return published[len(published) // 2]


def _is_gguf(name: str, source: str) -> bool:
    folder = Path(source)
    return any(folder.glob("*.gguf")) if folder.is_dir() else "gguf" in name.rpartition("/")[2].lower()


def embedding(name: str, source: str, config: dict[str, Any]) -> str | None:
    """Return why a checkpoint of a model type that runs writes no answers; None if nothing says so.

    Models that embed or rank pictures have the model type of the model that they were trained from.
    """
    base = name.rpartition("/")[2].lower()
    # A folder of the user may have any name.
    says_so = not Path(name).is_dir() and any(word in base for word in ("embedding", "reranker"))
    if not says_so and not (Path(source) / "modules.json").is_file():
        return None
    kind, nearest = quote(str(config["model_type"])), _nearest(name, str(config["model_type"]))
    return (
        f"{quote(name)} is an embedding model ({kind}), which writes no answers; the nearest that works is {nearest}."
    )


def _embeds(source: str, revision: str | None, config: dict[str, Any]) -> bool:
    if config.get("model_type") in EMBEDDING_TYPES:
        return True
    # Sentence Transformers writes this file; its models often have the classes of a text model.
    return _has_file(source, "modules.json", revision)


def _writes_text(config: dict[str, Any]) -> bool:
    classes = config.get("architectures") or []
    return any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in classes)


def _has_file(source: str, file: str, revision: str | None) -> bool:
    try:
        return cached_file(source, file, revision=revision) is not None
    except OSError:
        # The hub's client has no other sign of a file or a repository that does not exist.
        return False
