"""InternVL3 and 3.5 in the layout of transformers: tiles and a thumbnail, four patches a token."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor
from transformers import InternVLProcessor
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import get_optimal_tiled_canvas

from tops_engine.conversation.messages import Conversation
from tops_engine.families.llava_onevision import CLIP_COLOURS
from tops_engine.families.parts.frame_processor import FrameProcessor
from tops_engine.families.prompt import Prompt
from tops_engine.families.tiled import Tiled
from tops_engine.media.layout import VisualLayout, frame_layout, grid_boxes
from tops_engine.media.videos import Video


class PictureProcessor(InternVLProcessor):  # type: ignore[misc]  # transformers types it as Any
    """The checkpoint's processor without its part for videos, which needs torchvision."""

    def __init__(
        self,
        image_processor: Any,
        tokenizer: Any,
        image_seq_length: int = 256,
        chat_template: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(image_processor, tokenizer, None, image_seq_length, chat_template, **kwargs)
        # Placeholders of videos are expanded before it reads the text.
        self.video_token = None
        self.multimodal_pattern = re.compile(f"(?P<image>{re.escape(self.image_token)})")


class InternVL(Tiled):
    """``InternVLForConditionalGeneration``, over Qwen2 (InternVL3), Qwen3 (3.5) or Llama.

    A frame of a video is seen whole, as one tile, and has its number written before it.
    """

    model_types = ("internvl",)
    checkpoints: ClassVar[dict[str, tuple[str, ...]]] = {
        "internvl": (
            *(f"OpenGVLab/InternVL3-{size}-hf" for size in ("1B", "2B", "8B", "14B", "38B", "78B")),
            *(f"OpenGVLab/InternVL3_5-{size}-HF" for size in ("1B", "2B", "4B", "8B", "14B", "38B")),
        )
    }
    processor_class = PictureProcessor
    takes_videos = True

    #: What the class of the checkpoint's video processor fills in where its config is silent.
    frame_defaults: ClassVar[dict[str, Any]] = {"size": {"height": 384, "width": 384}, "resample": 3, **CLIP_COLOURS}

    def __init__(self, model: Any, processor: Any) -> None:
        # The config names no token for videos, which have that of pictures in the end.
        model.config.video_token_id = processor.tokenizer.convert_tokens_to_ids(processor.tokenizer.video_token)
        super().__init__(model, processor)

    @classmethod
    def load_processor(cls, source: str, revision: str | None) -> Any:
        processor = super().load_processor(source, revision)
        processor.frame_processor = FrameProcessor.from_pretrained(source, revision, cls.frame_defaults)
        return processor

    def prepare(self, conversation: Conversation) -> Prompt:
        prompt = super().prepare(conversation)
        if not prompt.videos:
            return prompt
        config = self.model.config
        input_ids = prompt.input_ids.masked_fill(prompt.input_ids == config.video_token_id, config.image_token_id)
        tiles = {
            False: iter(prompt.pixels.get("pixel_values", torch.empty(0))),
            True: iter(prompt.pixels["pixel_values_videos"]),
        }
        # The model takes tiles and frames in one row, in the order of the prompt.
        spans = [(span.layout.frame is not None, span.layout.num_tokens // self.side**2) for span in prompt.spans]
        ordered = [next(tiles[is_video]) for is_video, count in spans for _ in range(count)]
        return replace(prompt, input_ids=input_ids, pixels={"pixel_values": torch.stack(ordered)})

    def read_videos(self, videos: Sequence[Video]) -> dict[str, Tensor]:
        return {"pixel_values_videos": torch.cat([self.processor.frame_processor(video.frames) for video in videos])}

    def video_layouts(self, videos: Sequence[Video], pixels: dict[str, Tensor]) -> list[VisualLayout]:
        boxes = grid_boxes(self.side, self.side)
        return [frame_layout(len(video.frames), boxes, (self.side, self.side)) for video in videos]

    def video_text(self, video: Video, _layout: VisualLayout) -> str:
        processor, tokens = self.processor, str(self.video_token) * self.side**2
        tile = f"{processor.start_image_token}{tokens}{processor.end_image_token}"
        return "\n".join(f"Frame{number}: {tile}" for number in range(1, len(video.frames) + 1))

    @property
    def projector(self) -> torch.nn.Module:
        return self.model.model.multi_modal_projector

    @property
    def vision_layers(self) -> Sequence[Any]:
        return self.model.model.vision_tower.encoder.layer

    def attention_of(self, layer: Any) -> Any:
        return layer.attention

    def projections(self, attention: Any) -> tuple[torch.nn.Module, torch.nn.Module]:
        # Behind the projections, and there (as identities) where the tower does not normalise.
        return attention.q_norm, attention.k_norm

    @property
    def has_cls(self) -> bool:
        return True

    @property
    def block(self) -> int:
        return round(1 / self.model.config.downsample_ratio)

    @property
    def projector_outputs(self) -> tuple[int, ...]:
        return (self.model.config.text_config.hidden_size,) * 2

    def tile_grid(self, image: Image.Image) -> tuple[int, int]:
        processor = self.processor.image_processor
        return tile_grid(image.height, image.width, processor.size, processor.min_patches, processor.max_patches)

    def tile_features(self, pixel_values: Tensor) -> Tensor:
        features: Tensor = self.model.model.get_image_features(pixel_values, return_dict=True).pooler_output
        return features


def tile_grid(height: int, width: int, size: Mapping[str, int], min_tiles: int, max_tiles: int) -> tuple[int, int]:
    """Rows and columns of the tiles of this ``size`` that a picture is cut into; (0, 0) where it stays whole."""
    tile = (size["height"], size["width"])
    columns, rows = get_optimal_tiled_canvas((height, width), tile, min_tiles, max_tiles)
    return (rows, columns) if rows * columns > 1 else (0, 0)
