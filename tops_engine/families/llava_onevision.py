"""LLaVA-OneVision: one picture in up to 36 tiles, several pictures or the frames of videos whole; SigLIP, no [CLS]."""

import math
from collections.abc import Sequence
from typing import Any, ClassVar

from PIL import Image

from tops_engine.families.llava_next import LlavaNext
from tops_engine.families.parts.frame_processor import CLIP_COLOURS, FrameProcessor
from tops_engine.families.parts.onevision_tiles import OnevisionTiles, as_one_conversation
from tops_engine.families.parts.pooled_frames import PooledFrames
from tops_engine.families.parts.processors import OnevisionPictureProcessor

#: What transformers' ``LlavaOnevisionVideoProcessor`` takes if the checkpoint's config does not say.
FRAME_DEFAULTS: dict[str, Any] = {"size": {"height": 384, "width": 384}, "resample": 3, **CLIP_COLOURS}


class LlavaOnevision(LlavaNext):
    """``LlavaOnevisionForConditionalGeneration``: llava-hf/llava-onevision-qwen2-0.5b-ov-hf, -7b-ov-hf, -72b-ov-hf.

    A single picture is cut into tiles as in LLaVA-NeXT, and its tokens are scaled down if they are more than those of
    nine tiles. Each of several pictures is padded to a square and seen whole. A frame's tokens are scaled down to a
    quarter after the projector, and a newline token stands after each video. Signals (attention, keys, features) are
    scaled with the tokens, so the projector of scaled features gives the scaled tokens only approximately.
    """

    model_types = ("llava_onevision",)
    checkpoints: ClassVar[dict[str, tuple[str, ...]]] = {
        "llava_onevision": tuple(f"llava-hf/llava-onevision-qwen2-{size}-ov-hf" for size in ("0.5b", "7b", "72b"))
    }
    clip_tower = False
    takes_videos = True
    uncut_because: ClassVar[str | None] = "whose tokens are scaled down after the tower"
    processor_class = OnevisionPictureProcessor
    default_chat_template = None

    def __init__(self, model: Any, processor: Any) -> None:
        super().__init__(model, processor)
        self.tiles = OnevisionTiles(model)
        grid = (math.ceil(self.tiles.side / 2),) * 2
        self.frames = PooledFrames(grid, model.model.apply_pooling, newlines="one_token")

    @classmethod
    def load_processor(cls, source: str, revision: str | None) -> Any:
        processor = super().load_processor(source, revision)
        processor.frame_processor = FrameProcessor.from_pretrained(source, revision, FRAME_DEFAULTS)
        return processor

    def for_processor(self, images: Sequence[Image.Image]) -> Sequence[Any]:
        return as_one_conversation(images)
