"""LLaVA-HR, LLaVA-1.5 with a mixture-of-resolution vision tower (arXiv 2403.03003). transformers does not have it."""

import json
import re
from pathlib import Path
from typing import Any, ClassVar

from transformers import (
    CLIPVisionConfig,
    ConvNextConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from tops_engine.errors import UnsupportedModel, quote
from tops_engine.families.llava import Llava
from tops_engine.families.parts.chat_templates import VICUNA_TEMPLATE
from tops_engine.families.parts.llava_hr_tower import MixedResolutionConfig, extra_flops
from tops_engine.families.parts.original import (
    LLAVA_KEY_MAPPING,
    checkpoint_folder,
    checkpoint_tokenizer,
    count,
    load_weights,
    text_settings,
    weight_shape,
    weight_shapes,
)
from tops_engine.families.parts.vision_tower import LayerAttention, PatchTower, middle_layer, shallow_layer
from tops_engine.families.prompt import Prompt
from tops_engine.flops import VisionShape
from tops_engine.tower import Dedup

#: The published tokenizer has no token for a picture. No text is tokenized to this one, because unknown characters
#: become bytes.
IMAGE_TOKEN = "<unk>"

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions. "
)
CHAT_TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}"
    + SYSTEM
    + "{% endif %}"
    + VICUNA_TEMPLATE.replace("<image>", IMAGE_TOKEN)
)

#: From the names of the published weights to those of :class:`MixedResolutionTower` and transformers' LLaVA. Each rule
#: applies to the result of those before it.
KEY_MAPPING = LLAVA_KEY_MAPPING | {
    r"fast_vision_tower\.vision_tower\.vision_model\.": "fast.",
    r"slow_vision_tower\.vision_tower\.stem\.0\.": "slow.embeddings.patch_embeddings.",
    r"slow_vision_tower\.vision_tower\.stem\.1\.": "slow.embeddings.layernorm.",
    r"slow_vision_tower\.vision_tower\.stages\.": "slow.encoder.stages.",
    r"(stages\.\d+)\.downsample\.": r"\1.downsampling_layer.",
    r"(stages\.\d+)\.blocks\.": r"\1.layers.",
    r"(stages\.\d+\.layers\.\d+)\.conv_dw\.": r"\1.dwconv.",
    r"(stages\.\d+\.layers\.\d+)\.norm\.": r"\1.layernorm.",
    r"(stages\.\d+\.layers\.\d+)\.mlp\.fc1\.": r"\1.pwconv1.",
    r"(stages\.\d+\.layers\.\d+)\.mlp\.fc2\.": r"\1.pwconv2.",
    r"(stages\.\d+\.layers\.\d+)\.weight$": r"\1.layer_scale_parameter",
}


class LlavaHR(Llava):
    """LLaVA-HR in the layout of the original code.

    The family reads config.json (the settings of the language model, ``input_image_size``, ``image_aspect_ratio`` and
    ``vision_tower_slow``), the tokenizer and the safetensors files. The shapes of the weights give the sizes of both
    vision towers. The checkpoints have no processor config and no chat template. As in the original code, pictures are
    padded to a square with CLIP's mean colour and normalised with its mean and deviation, and prompts are Vicuna's.

    There is no [CLS]: the relevance of a token is the mean attention that it receives in CLIP's last layer.
    """

    model_types = ("llava_hr",)
    checkpoints: ClassVar[dict[str, tuple[str, ...]]] = {
        "llava_hr": ("favor123/llava-hr-7b-sft-1024", "favor123/llava-hr-13b-x-sft-1024")
    }
    clip_tower = False
    default_chat_template = CHAT_TEMPLATE
    dedups: ClassVar[tuple[Dedup, ...]] = ()
    uncut_because: ClassVar[str | None] = "which mixes two towers"

    def __init__(self, model: Any, processor: Any) -> None:
        model.config.image_token_id = processor.image_token_id
        super().__init__(model, processor)

    @classmethod
    def matches(cls, config: dict[str, Any]) -> bool:
        return bool(config.get("is_multipath_encoder")) and "mm_vision_tower" in config

    @classmethod
    def load_model(cls, source: str, revision: str | None = None, **options: Any) -> tuple[Any, list[str]]:
        folder = checkpoint_folder(source, revision)
        return load_weights(LlavaForConditionalGeneration, folder, _config(folder), KEY_MAPPING, **options)

    @classmethod
    def load_processor(cls, source: str, revision: str | None) -> Any:
        folder = checkpoint_folder(source, revision)
        config = json.loads((folder / "config.json").read_text())
        vision = _config(folder).vision_config
        images = LlavaImageProcessorPil(
            do_pad=config.get("image_aspect_ratio") == "pad",
            size={"shortest_edge": vision.image_size},
            crop_size={"height": vision.image_size, "width": vision.image_size},
        )
        tokenizer = checkpoint_tokenizer(folder)
        if tokenizer.unk_token != IMAGE_TOKEN:
            raise UnsupportedModel(
                f"The tokenizer of {quote(source)} has no token {IMAGE_TOKEN}; supported are LLaVA-HR models over "
                "Llama."
            )
        return LlavaProcessor(images, tokenizer, vision.patch_size, "full", CHAT_TEMPLATE, IMAGE_TOKEN)

    def build_tower(self) -> PatchTower:
        # The last layer feeds the fusion with ConvNeXt, and that the projector.
        layers = self.model.model.vision_tower.fast.encoder.layers
        numbers = -1, middle_layer(len(layers)), shallow_layer(len(layers))
        attention, middle, shallow = (LayerAttention.of(layers[number]) for number in numbers)
        config, text_width = self.model.config.vision_config, self.model.config.text_config.hidden_size
        fast, num_tokens = config.fast_config, config.side**2
        shape = VisionShape(
            num_layers=fast.num_hidden_layers,
            hidden_size=fast.hidden_size,
            intermediate_size=fast.intermediate_size,
            num_tokens=num_tokens,
            num_patches=num_tokens,
            patch_values=fast.num_channels * fast.patch_size**2,
            num_projected=num_tokens,
            projector_widths=(fast.hidden_size, text_width, text_width),
        )
        return PatchTower(attention, attention, middle, shallow, shape)

    def vision_flops(self, prompt: Prompt) -> int:
        return super().vision_flops(prompt) + len(prompt.images) * extra_flops(self.model.config.vision_config)


def _config(folder: Path) -> LlavaConfig:
    """Make the config of transformers' LLaVA from the original config and the shapes of the weights."""
    original = json.loads((folder / "config.json").read_text())
    shapes = weight_shapes(folder)
    vision = MixedResolutionConfig(
        fast_config=_clip_config(shapes),
        slow_config=_convnext_config(shapes),
        image_size=original["input_image_size"],
        adapters=any("align_stages_latent" in name for name in shapes),
        slow_norm_eps=1e-5 if "xxlarge" in original.get("vision_tower_slow", "") else 1e-6,
    )
    return LlavaConfig(
        vision_config=vision,
        text_config=LlamaConfig(**text_settings(original)),
        image_seq_length=vision.side**2,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )


def _clip_config(shapes: dict[str, list[int]]) -> CLIPVisionConfig:
    prefix = "model.vision_tower.fast_vision_tower.vision_tower.vision_model."
    width, channels, patch, _ = weight_shape(shapes, f"{prefix}embeddings.patch_embedding.weight")
    positions, _ = weight_shape(shapes, f"{prefix}embeddings.position_embedding.weight")
    intermediate, _ = weight_shape(shapes, f"{prefix}encoder.layers.0.mlp.fc1.weight")
    return CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=intermediate,
        num_hidden_layers=count(shapes, re.escape(prefix) + r"encoder\.layers\.(\d+)\."),
        num_attention_heads=width // 64,
        num_channels=channels,
        image_size=round((positions - 1) ** 0.5) * patch,
        patch_size=patch,
        hidden_act="quick_gelu",
    )


def _convnext_config(shapes: dict[str, list[int]]) -> ConvNextConfig:
    prefix = "model.vision_tower.slow_vision_tower.vision_tower."
    stages = range(count(shapes, re.escape(prefix) + r"stages\.(\d+)\."))
    _, channels, patch, _ = weight_shape(shapes, f"{prefix}stem.0.weight")
    return ConvNextConfig(
        num_channels=channels,
        patch_size=patch,
        num_stages=len(stages),
        hidden_sizes=[weight_shape(shapes, f"{prefix}stages.{stage}.blocks.0.norm.weight")[0] for stage in stages],
        depths=[count(shapes, re.escape(prefix) + rf"stages\.{stage}\.blocks\.(\d+)\.") for stage in stages],
    )
