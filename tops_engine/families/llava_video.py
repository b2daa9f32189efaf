"""LLaVA-Video and LLaVA-OneVision in the layout of the original code, which transformers does not read."""

import json
import math
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, get_args

import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers import (
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionImageProcessorPil,
    Qwen2Config,
    SiglipVisionConfig,
)

from tops_engine.errors import UnsupportedModel, quote
from tops_engine.families.llava_next import LlavaNext
from tops_engine.families.parts.frame_processor import FrameProcessor
from tops_engine.families.parts.onevision_tiles import OnevisionTiles, as_one_conversation
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
from tops_engine.families.parts.pooled_frames import Newlines, PooledFrames
from tops_engine.families.parts.processors import OnevisionPictureProcessor
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

#: From the names of the published weights to those of transformers' LLaVA-OneVision.
KEY_MAPPING = LLAVA_KEY_MAPPING | {r"^model\.vision_tower\.vision_tower\.vision_model\.": "model.vision_tower."}

TOWER = "model.vision_tower.vision_tower.vision_model."

#: Of SigLIP so400m. The shapes of the weights do not tell this number.
NUM_VISION_HEADS = 16

POOL_MODES = ("bilinear", "average", "max")
NEWLINE_POSITIONS = get_args(Newlines)


class LlavaVideo(LlavaNext):
    """``LlavaQwenForCausalLM`` of the original code: LLaVA-Video, and LLaVA-OneVision before its conversion.

    The modules and the pictures are those of LLaVA-OneVision; frames follow ``config.json``:

    - ``mm_spatial_pool_mode`` pools them by averages, by maxima (both drop a last odd row and column) or bilinearly;
    - ``mm_newline_position`` puts a newline token after each row of a frame, after each frame, after the video, or
      nowhere;
    - ``add_time_instruction`` adds the times of the frames to the prompt.

    LLaVA-Video's own config has "bilinear" and "grid", 210 tokens a frame; evaluations that average see 182. Only the
    language model, the tokenizer and the weights are published. Everything else (the sizes of SigLIP that shapes of
    weights do not tell, the normalisation of colours, the form of the prompt) is that of the original code.
    """

    model_types = ("llava_qwen",)
    checkpoints: ClassVar[dict[str, tuple[str, ...]]] = {
        "llava_qwen": (
            "lmms-lab/LLaVA-Video-7B-Qwen2",
            "lmms-lab/LLaVA-Video-72B-Qwen2",
            "lmms-lab/llava-onevision-qwen2-7b-ov",
        )
    }
    clip_tower = False
    takes_videos = True
    uncut_because: ClassVar[str | None] = "whose tokens are scaled down after the tower"
    default_chat_template = CHAT_TEMPLATE

    def __init__(self, model: Any, processor: Any) -> None:
        super().__init__(model, processor)
        self.tiles = OnevisionTiles(model)
        self.frames = _pooled_frames(model.config, self.tiles.side)

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
        processor = OnevisionPictureProcessor(
            images,
            _tokenizer(folder),
            (tile // config.vision_config.patch_size) ** 2,
            "full",
            CHAT_TEMPLATE,
            vision_aspect_ratio=config.vision_aspect_ratio,
        )
        processor.frame_processor = FrameProcessor.from_config(common | {"size": size})
        return processor

    def for_processor(self, images: Sequence[Image.Image]) -> Sequence[Any]:
        return as_one_conversation(images)

    def video_text(self, video: Video, layout: VisualLayout) -> str:
        """Return the video's tokens and, with ``add_time_instruction``, when its frames are shown."""
        text = super().video_text(video, layout)
        if not self.model.config.add_time_instruction:
            return text
        times = ",".join(f"{seconds:.2f}s" for seconds in video.timestamps)
        return (
            f"{text}\nThe video lasts for {video.duration:.2f} seconds, and {len(video.frames)} frames are uniformly "
            f"sampled from it. These frames are located at {times}.Please answer the following questions related to "
            "this video."
        )


def _pooled_frames(config: LlavaOnevisionConfig, side: int) -> PooledFrames:
    """Read how frames of ``side`` x ``side`` patches are pooled."""
    rounded = math.ceil if config.frame_pool_mode == "bilinear" else math.floor
    grid = (rounded(side / config.frame_pool_stride),) * 2
    pool = partial(_pool, mode=config.frame_pool_mode, stride=config.frame_pool_stride, side=side, grid=grid)
    return PooledFrames(grid, pool, config.frame_newline_position)


def _pool(values: Tensor, mode: str, stride: int, side: int, grid: tuple[int, int]) -> Tensor:
    """Pool values of frames: [frames, side * side, c] -> [frames, rows * columns of ``grid``, c]."""
    maps = values.transpose(1, 2).reshape(len(values), -1, side, side)
    if mode == "bilinear":
        maps = F.interpolate(maps, grid, mode="bilinear")
    else:
        pool = F.avg_pool2d if mode == "average" else F.max_pool2d
        maps = pool(maps, stride)
    return maps.flatten(2).transpose(1, 2)


def _config(folder: Path) -> LlavaOnevisionConfig:
    """Make the config of transformers' LLaVA-OneVision from the original config and the shapes of the weights.

    Raises
    ------
    UnsupportedModel
        If the checkpoint cuts pictures, pools frames or places newlines in a way that is not supported.
    """
    original = json.loads((folder / "config.json").read_text())
    aspect, pinpoints = original.get("image_aspect_ratio", ""), original.get("image_grid_pinpoints")
    newline = original.get("mm_newline_position", "one_token")
    pool_mode = original.get("mm_spatial_pool_mode", "bilinear")
    if not (aspect.startswith("anyres_max_") and isinstance(pinpoints, list)):
        raise UnsupportedModel(
            f"This checkpoint has image_aspect_ratio={quote(aspect)} and image_grid_pinpoints={quote(pinpoints)}; "
            "supported are anyres_max_... and a list of sizes."
        )
    if newline not in NEWLINE_POSITIONS or pool_mode not in POOL_MODES or original.get("add_faster_video"):
        raise UnsupportedModel(
            f"This checkpoint has mm_spatial_pool_mode={quote(pool_mode)}, mm_newline_position={quote(newline)} and "
            f"add_faster_video={bool(original.get('add_faster_video'))}; supported are {', '.join(POOL_MODES)}, "
            f"{', '.join(NEWLINE_POSITIONS)} and False."
        )
    image_token, video_token = _tokenizer(folder).convert_tokens_to_ids(["<image>", "<video>"])
    if video_token >= original["vocab_size"]:
        raise UnsupportedModel("This checkpoint's token table has no room for a token that stands for videos.")
    config = LlavaOnevisionConfig(
        vision_config=_siglip_config(weight_shapes(folder), min(map(min, pinpoints))),
        text_config=Qwen2Config(**text_settings(original)),
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
    """Load the tokenizer and add the tokens that stand for pictures and videos, which the original code lacks."""
    tokenizer = checkpoint_tokenizer(folder)
    tokenizer.add_tokens(["<image>", "<video>"], special_tokens=True)
    return tokenizer
