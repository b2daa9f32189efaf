"""LLaVA-Video and LLaVA-OneVision in the layout of the original code, which transformers does not read."""

import json
import math
import re
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import (
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionImageProcessorPil,
    Qwen2Config,
    SiglipVisionConfig,
)

from tops_engine.errors import UnsupportedModel
from tops_engine.families.llava_onevision import LlavaOnevision, PictureProcessor
from tops_engine.families.parts.frame_processor import FrameProcessor
from tops_engine.families.parts.original import (
    checkpoint_folder,
    checkpoint_tokenizer,
    count,
    load_weights,
    weight_shape,
    weight_shapes,
)
from tops_engine.media.layout import VisualLayout
from tops_engine.media.videos import Video

CHAT_TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] %}"
    "{{ {'image': '<image>\n', 'video': '<video>\n'}.get(part['type'], part['text']) }}"
    "{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

#: From the names of the published weights to those they have here.
KEY_MAPPING = {
    r"^model\.(embed_tokens|layers|norm)\.": r"model.language_model.\1.",
    r"^model\.mm_projector\.0\.": "model.multi_modal_projector.linear_1.",
    r"^model\.mm_projector\.2\.": "model.multi_modal_projector.linear_2.",
    r"^model\.vision_tower\.vision_tower\.vision_model\.": "model.vision_tower.",
}

TOWER = "model.vision_tower.vision_tower.vision_model."

#: Of SigLIP so400m, whose weights do not tell it.
NUM_VISION_HEADS = 16

POOL_MODES = ("bilinear", "average", "max")
NEWLINE_POSITIONS = ("grid", "frame", "one_token", "no_token")


class LlavaVideo(LlavaOnevision):
    """What the original code calls ``LlavaQwenForCausalLM``: LLaVA-Video, and LLaVA-OneVision before its conversion.

    The modules are those of LLaVA-OneVision; frames differ as ``config.json`` says: pooled by averages, maxima
    (``mm_spatial_pool_mode``; both drop a last odd row and column) or bilinearly, with a newline after each row of a
    frame, each frame, the video, or none (``mm_newline_position``). LLaVA-Video's own config has bilinear and grid: 210
    tokens a frame; evaluations that average see 182. With ``add_time_instruction`` the prompt says when the frames are
    shown. Published are the language model, tokenizer and weights; the rest (SigLIP's sizes beside the weights' shapes,
    colours, the prompt's form) is what the original code takes.
    """

    model_types: ClassVar[tuple[str, ...]] = ("llava_qwen",)
    checkpoints: ClassVar[dict[str, tuple[str, ...]]] = {
        "llava_qwen": (
            "lmms-lab/LLaVA-Video-7B-Qwen2",
            "lmms-lab/LLaVA-Video-72B-Qwen2",
            "lmms-lab/llava-onevision-qwen2-7b-ov",
        )
    }
    default_chat_template = CHAT_TEMPLATE

    @classmethod
    def matches(cls, config: dict[str, Any]) -> bool:
        return "LlavaQwenForCausalLM" in (config.get("architectures") or ()) and "mm_vision_tower" in config

    @classmethod
    def load_model(cls, source: str, revision: str | None = None, **options: Any) -> tuple[Any, list[str]]:
        folder = checkpoint_folder(source, revision)
        return load_weights(LlavaOnevisionForConditionalGeneration, folder, _config(folder), KEY_MAPPING, **options)

    @classmethod
    def load_processor(cls, source: str, revision: str | None) -> Any:
        folder = checkpoint_folder(source, revision)
        config = _config(folder)
        tile = config.vision_config.image_size
        common: dict[str, Any] = {"image_mean": (0.5,) * 3, "image_std": (0.5,) * 3, "resample": 3}
        size = {"height": tile, "width": tile}
        images = LlavaOnevisionImageProcessorPil(
            **common, size=size, do_pad=True, image_grid_pinpoints=config.image_grid_pinpoints
        )
        processor = PictureProcessor(
            images,
            _tokenizer(folder),
            (tile // config.vision_config.patch_size) ** 2,
            "full",
            CHAT_TEMPLATE,
            vision_aspect_ratio=config.vision_aspect_ratio,
        )
        processor.frame_processor = FrameProcessor.from_config(common | {"size": size})
        return processor

    @property
    def frame_grid(self) -> tuple[int, int]:
        config = self.model.config
        rounded = math.ceil if config.frame_pool_mode == "bilinear" else math.floor
        return (rounded(self.side / config.frame_pool_stride),) * 2

    def pool(self, values: Tensor) -> Tensor:
        config = self.model.config
        maps = values.transpose(1, 2).reshape(len(values), -1, self.side, self.side)
        if config.frame_pool_mode == "bilinear":
            maps = F.interpolate(maps, self.frame_grid, mode="bilinear")
        else:
            pool = F.avg_pool2d if config.frame_pool_mode == "average" else F.max_pool2d
            maps = pool(maps, config.frame_pool_stride)
        return maps.flatten(2).transpose(1, 2)

    def pack_frames(self, values: Tensor, newline: Tensor) -> Tensor:
        position = self.model.config.frame_newline_position
        if position == "grid":
            rows = values.reshape(len(values), *self.frame_grid, -1)
            return torch.cat([rows, newline.expand(*rows.shape[:2], 1, -1)], dim=2).flatten(0, 2)
        if position == "frame":
            return torch.cat([values, newline.expand(len(values), 1, -1)], dim=1).flatten(0, 1)
        return super().pack_frames(values, newline) if position == "one_token" else values.flatten(0, 1)

    def video_text(self, video: Video, layout: VisualLayout) -> str:
        text = super().video_text(video, layout)
        if not self.model.config.add_time_instruction:
            return text
        times = ",".join(f"{seconds:.2f}s" for seconds in video.timestamps)
        return (
            f"{text}\nThe video lasts for {video.duration:.2f} seconds, and {len(video.frames)} frames are uniformly "
            f"sampled from it. These frames are located at {times}.Please answer the following questions related to "
            "this video."
        )


def _config(folder: Path) -> LlavaOnevisionConfig:
    """The config of transformers' LLaVA-OneVision, from the original one and the shapes of the weights."""
    original = json.loads((folder / "config.json").read_text())
    aspect, pinpoints = original.get("image_aspect_ratio", ""), original.get("image_grid_pinpoints")
    newline = original.get("mm_newline_position", "one_token")
    pool_mode = original.get("mm_spatial_pool_mode", "bilinear")
    if not (aspect.startswith("anyres_max_") and isinstance(pinpoints, list)):
        raise UnsupportedModel(
            f"This checkpoint has image_aspect_ratio={aspect!r} and image_grid_pinpoints={pinpoints!r}; supported are "
            "anyres_max_... and a list of sizes."
        )
    if newline not in NEWLINE_POSITIONS or pool_mode not in POOL_MODES or original.get("add_faster_video"):
        raise UnsupportedModel(
            f"This checkpoint pools frames by {pool_mode!r}, with newlines by {newline!r}, or has a second stream of "
            f"frames; supported are {', '.join(POOL_MODES)}, with {', '.join(NEWLINE_POSITIONS)}, and one stream."
        )
    text = {name: value for name, value in original.items() if not name.startswith(("mm_", "model_type", "arch"))}
    image_token, video_token = _tokenizer(folder).convert_tokens_to_ids(["<image>", "<video>"])
    if video_token >= original["vocab_size"]:
        raise UnsupportedModel("This checkpoint's token table has no room for a token that stands for videos.")
    config = LlavaOnevisionConfig(
        vision_config=_siglip_config(weight_shapes(folder), min(map(min, pinpoints))),
        text_config=Qwen2Config(**text),
        image_token_index=image_token,
        video_token_index=video_token,
        image_grid_pinpoints=pinpoints,
        vision_aspect_ratio=aspect,
        tie_word_embeddings=original.get("tie_word_embeddings", False),
    )
    config.frame_pool_mode, config.frame_newline_position = pool_mode, newline
    config.frame_pool_stride = original.get("mm_spatial_pool_stride") or 2
    config.add_time_instruction = bool(original.get("add_time_instruction"))
    return config


def _siglip_config(shapes: dict[str, list[int]], image_size: int) -> SiglipVisionConfig:
    width, channels, patch, _ = weight_shape(shapes, f"{TOWER}embeddings.patch_embedding.weight")
    intermediate, _ = weight_shape(shapes, f"{TOWER}encoder.layers.0.mlp.fc1.weight")
    return SiglipVisionConfig(
        hidden_size=width,
        intermediate_size=intermediate,
        num_hidden_layers=count(shapes, re.escape(TOWER) + r"encoder\.layers\.(\d+)\."),
        num_attention_heads=NUM_VISION_HEADS,
        num_channels=channels,
        image_size=image_size,
        patch_size=patch,
        vision_use_head=False,
    )


def _tokenizer(folder: Path) -> Any:
    """The checkpoint's tokenizer, and a token each for pictures and videos, which the original code has none for."""
    tokenizer = checkpoint_tokenizer(folder)
    tokenizer.add_tokens(["<image>", "<video>"], special_tokens=True)
    return tokenizer
