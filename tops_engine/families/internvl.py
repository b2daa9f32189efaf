"""InternVL3 and 3.5 in the layout of transformers: a grid of tiles and a thumbnail, one token for 2 x 2 patches."""

import math
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor
from transformers import InternVLProcessor, PreTrainedConfig
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import get_optimal_tiled_canvas

from tops_engine.conversation.messages import Conversation
from tops_engine.device.transfer import to_device
from tops_engine.errors import UnsupportedModel, quote
from tops_engine.families.base import Family
from tops_engine.families.parts.frame_processor import CLIP_COLOURS, FrameProcessor
from tops_engine.families.parts.tile_grid import tiled_layout
from tops_engine.families.parts.tower_parts import in_parts
from tops_engine.families.parts.tower_run import PatchCut, TileRun, patch_cut, run_layers
from tops_engine.families.parts.vision_tower import (
    LayerAttention,
    PatchTower,
    TileLayers,
    middle_layer,
    selected_layers,
    shallow_layer,
)
from tops_engine.families.prompt import Prompt, split_rows, tiles_in_prompt_order
from tops_engine.flops import VisionShape, patches_per_side
from tops_engine.grounding.formats import INTERNVL, Format
from tops_engine.media.bounds import Bounds
from tops_engine.media.layout import VisualLayout, frame_layout, grid_boxes
from tops_engine.media.videos import Video
from tops_engine.tower import Dedup, TowerOptions

#: Model types of the language models whose decoders are tested.
TEXT_MODELS = ("llama", "qwen2", "qwen3", "qwen3_moe", "gpt_oss")

#: What transformers' ``InternVLVideoProcessor`` takes if the checkpoint's config does not say.
FRAME_DEFAULTS: dict[str, Any] = {"size": {"height": 384, "width": 384}, "resample": 3, **CLIP_COLOURS}


class PictureProcessor(InternVLProcessor):  # type: ignore[misc]  # transformers types it as Any
    """The checkpoint's processor without its video processor, which needs torchvision."""

    def __init__(
        self,
        image_processor: Any,
        tokenizer: Any,
        image_seq_length: int = 256,
        chat_template: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(image_processor, tokenizer, None, image_seq_length, chat_template, **kwargs)
        # Placeholders of videos are expanded before the processor reads the text.
        self.video_token = None
        self.multimodal_pattern = re.compile(f"(?P<image>{re.escape(self.image_token)})")


class InternVL(Family):
    """``InternVLForConditionalGeneration``, over Qwen2 (InternVL3), Qwen3, Qwen3-MoE or GPT-OSS (3.5) or Llama.

    A frame of a video is seen whole, as one tile, and its number stands in the text before it. GPT-OSS runs with
    transformers' plain attention, as the fused kernel of torch does not know its attention sinks.
    """

    model_types = ("internvl",)
    checkpoints: ClassVar[dict[str, tuple[str, ...]]] = {
        "internvl": (
            *(f"OpenGVLab/InternVL3-{size}-hf" for size in ("1B", "2B", "8B", "14B", "38B", "78B")),
            *(f"OpenGVLab/InternVL3_5-{size}-HF" for size in ("1B", "2B", "4B", "8B", "14B", "38B")),
            *(f"OpenGVLab/InternVL3_5-{size}-HF" for size in ("30B-A3B", "241B-A28B", "GPT-OSS-20B-A4B-Preview")),
        )
    }
    processor_class = PictureProcessor
    takes_videos = True
    grounding: ClassVar[dict[str, Format]] = {"internvl": INTERNVL}
    dedups: ClassVar[tuple[Dedup, ...]] = ("exact",)
    uncut_because: ClassVar[str | None] = None
    tower: PatchTower

    def __init__(self, model: Any, processor: Any) -> None:
        # The config names no token for videos. Their placeholder becomes that of pictures in :meth:`prepare`.
        model.config.video_token_id = processor.tokenizer.convert_tokens_to_ids(processor.tokenizer.video_token)
        super().__init__(model, processor)

    @classmethod
    def load_model(cls, source: str, **options: Any) -> tuple[Any, list[str]]:
        config, _ = PreTrainedConfig.get_config_dict(source, revision=options.get("revision"))
        text_model = config.get("text_config", {}).get("model_type", "qwen2")
        if text_model not in TEXT_MODELS:
            raise UnsupportedModel(
                f"The language model of this InternVL checkpoint is a {quote(text_model)} model; supported are "
                f"{', '.join(TEXT_MODELS)}, for example in OpenGVLab/InternVL3_5-8B-HF."
            )
        if text_model == "gpt_oss" and options["attn_implementation"] == "sdpa":
            options["attn_implementation"] = {"text_config": "eager", "vision_config": "sdpa"}
        return super().load_model(source, **options)

    @classmethod
    def load_processor(cls, source: str, revision: str | None) -> Any:
        processor = super().load_processor(source, revision)
        processor.frame_processor = FrameProcessor.from_pretrained(source, revision, FRAME_DEFAULTS)
        return processor

    def pixel_settings(self, least: int | None, most: int | None) -> dict[str, Any]:
        # A picture is scaled to its grid of tiles, whatever its own size; the thumbnail comes in addition.
        image_processor = self.processor.image_processor
        max_tiles = None if most is None else max(1, most // self._tile_pixels)
        min_tiles = None if least is None else min(math.ceil(least / self._tile_pixels), max_tiles or sys.maxsize)
        own = Bounds(image_processor.min_patches, image_processor.max_patches).within(min_tiles, max_tiles)
        return {"min_patches": own.least, "max_patches": own.most}

    def pixel_counts(self) -> list[int]:
        return [count * self._tile_pixels for count in range(1, self.processor.image_processor.max_patches + 1)]

    def picture_tokens(self, width: int, height: int, alone: bool = True) -> int:
        rows, columns = self._tile_grid(height, width)
        return (rows * columns + 1) * self.side**2

    def _tile_grid(self, height: int, width: int) -> tuple[int, int]:
        processor = self.processor.image_processor
        return tile_grid(height, width, processor.size, processor.min_patches, processor.max_patches)

    @property
    def _tile_pixels(self) -> int:
        size = self.processor.image_processor.size
        return int(size["height"] * size["width"])

    def build_tower(self) -> PatchTower:
        config = self.model.config
        vision, text_width = config.vision_config, config.text_config.hidden_size
        layers = self.model.model.vision_tower.encoder.layer
        block = round(1 / config.downsample_ratio)
        side = patches_per_side(vision) // block
        widths = (vision.hidden_size * block**2, text_width, text_width)
        return PatchTower(
            attention=_layer_attention(selected_layers(layers, config.vision_feature_layer)[-1]),
            last_attention=_layer_attention(layers[-1]),
            middle_attention=_layer_attention(layers[middle_layer(len(layers))]),
            shallow_attention=_layer_attention(layers[shallow_layer(len(layers))]),
            shape=VisionShape.from_config(vision, True, side**2, widths),
            has_cls=True,
            block=block,
            layers=TileLayers(self.model.model.vision_tower.embeddings, layers, _layer_attention, arguments=()),
        )

    @property
    def projector(self) -> torch.nn.Module:
        return self.model.model.multi_modal_projector

    @property
    def side(self) -> int:
        """Tokens along a side of a tile."""
        return patches_per_side(self.model.config.vision_config) // self.tower.block

    def prepare(self, conversation: Conversation) -> Prompt:
        prompt = super().prepare(conversation)
        if not prompt.videos:
            return prompt
        config, pixels = self.model.config, prompt.pixels
        input_ids = prompt.input_ids.masked_fill(prompt.input_ids == config.video_token_id, config.image_token_id)
        pictures = pixels.get("pixel_values", torch.empty(0))
        tiles = tiles_in_prompt_order(prompt.spans, self.side**2, pictures, pixels["pixel_values_videos"])
        return replace(prompt, input_ids=input_ids, pixels={"pixel_values": tiles})

    def layouts(self, images: Sequence[Image.Image], pixels: dict[str, Tensor]) -> list[VisualLayout]:
        return [tiled_layout(*self._tile_grid(image.height, image.width), self.side) for image in images]

    def read_videos(self, videos: Sequence[Video]) -> dict[str, Tensor]:
        return {"pixel_values_videos": torch.cat([self.processor.frame_processor(video.frames) for video in videos])}

    def video_layouts(self, videos: Sequence[Video], pixels: dict[str, Tensor]) -> list[VisualLayout]:
        boxes = grid_boxes(self.side, self.side)
        return [frame_layout(len(video.frames), boxes, (self.side, self.side)) for video in videos]

    def video_text(self, video: Video, _layout: VisualLayout) -> str:
        """Return a line for each frame: its number and its tokens."""
        processor, tokens = self.processor, str(self.video_token) * self.side**2
        tile = f"{processor.start_image_token}{tokens}{processor.end_image_token}"
        return "\n".join(f"Frame{number}: {tile}" for number in range(1, len(video.frames) + 1))

    def project(self, prompts: Sequence[Prompt]) -> list[Tensor]:
        return self.arrange(self._features(_tiles(prompts)), prompts)

    def tower_run(self, options: TowerOptions) -> TileRun:
        return TileRun(options, patch_cut(self.tower, options))

    def project_run(self, prompts: Sequence[Prompt], run: TileRun) -> list[Tensor]:
        return self.arrange(run.rows(_tiles(prompts), self._features, self.side**2), prompts)

    def tile_counts(self, prompt: Prompt) -> list[int]:
        return [span.layout.num_tokens // self.side**2 for span in prompt.spans]

    def _features(self, tiles: Tensor, cut: PatchCut | None = None) -> Tensor:
        """Run the vision tower and the projector: [t, 3, height, width] -> [t, tokens, d]."""
        tiles = to_device(tiles, self.decoder.device, self.decoder.dtype)
        if cut is None:
            model = self.model.model
            return in_parts(lambda part: model.get_image_features(part, return_dict=True).pooler_output, tiles)
        patches = self.model.model.vision_tower.layernorm(run_layers(self.tower, tiles, cut))[:, 1:]
        return self.projector(patches.unflatten(1, (-1, cut.block**2)).flatten(2))

    def arrange(self, values: Tensor, prompts: Sequence[Prompt]) -> list[Tensor]:
        return split_rows(values.flatten(0, 1), prompts)

    def vision_flops(self, prompt: Prompt) -> int:
        return self.tower.shape.flops(sum(self.tile_counts(prompt)))


def _tiles(prompts: Sequence[Prompt]) -> Tensor:
    """Return the pixels of all tiles and frames: [t, 3, height, width]."""
    return torch.cat([prompt.pixels["pixel_values"] for prompt in prompts if prompt.spans])


def _layer_attention(layer: Any) -> LayerAttention:
    attention = layer.attention
    # The norms come after the projections. Towers that do not normalise have identities there.
    return LayerAttention(attention.q_norm, attention.k_norm, attention.num_heads, attention.scale)


def tile_grid(height: int, width: int, size: Mapping[str, int], min_tiles: int, max_tiles: int) -> tuple[int, int]:
    """Return rows and columns of the tiles that a picture is cut into; (0, 0) if it stays whole.

    Parameters
    ----------
    height, width : of the picture, in pixels.
    size : ``height`` and ``width`` of a tile, in pixels.
    min_tiles, max_tiles : limits of the number of tiles, the thumbnail not included.
    """
    tile = (size["height"], size["width"])
    columns, rows = get_optimal_tiled_canvas((height, width), tile, min_tiles, max_tiles)
    return (rows, columns) if rows * columns > 1 else (0, 0)
