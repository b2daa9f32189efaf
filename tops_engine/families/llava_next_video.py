"""LLaVA-NeXT-Video: LLaVA-NeXT for pictures; frames of videos with a quarter of the tokens."""

from dataclasses import replace
from typing import Any, ClassVar

from torch import Tensor
from transformers import LlavaNextProcessor

from tops_engine.errors import UnsupportedModel
from tops_engine.families.llava import VICUNA_TEMPLATE
from tops_engine.families.llava_frames import LlavaFrames
from tops_engine.families.llava_onevision import CLIP_COLOURS
from tops_engine.flops import VisionShape


class LlavaNextVideo(LlavaFrames):
    """``LlavaNextVideoForConditionalGeneration``: llava-hf/LLaVA-NeXT-Video-7B-hf, -7B-DPO-hf, -34B-hf and their kind.

    The patches of a frame are pooled before the projector, and so is what is known of them. Videos have no newlines.
    """

    model_types: ClassVar[tuple[str, ...]] = ("llava_next_video",)
    checkpoints: ClassVar[dict[str, tuple[str, ...]]] = {
        "llava_next_video": (
            "llava-hf/LLaVA-NeXT-Video-7B-hf",
            "llava-hf/LLaVA-NeXT-Video-7B-DPO-hf",
            "llava-hf/LLaVA-NeXT-Video-34B-hf",
        )
    }
    #: Its own writes the same for pictures, but needs a processor of videos.
    processor_class = LlavaNextProcessor
    default_chat_template = VICUNA_TEMPLATE
    frame_defaults: ClassVar[dict[str, Any]] = {
        "size": {"shortest_edge": 224},
        "crop_size": {"height": 224, "width": 224},
        "do_center_crop": True,
        "resample": 3,
        **CLIP_COLOURS,
    }

    def __init__(self, model: Any, processor: Any) -> None:
        super().__init__(model, processor)
        if model.config.spatial_pool_mode == "conv":
            raise UnsupportedModel("This checkpoint pools frames by a convolution; supported are averages and maxima.")

    @property
    def frame_grid(self) -> tuple[int, int]:
        return (self.side // self.model.config.spatial_pool_stride,) * 2

    @property
    def frame_shape(self) -> VisionShape:
        rows, columns = self.frame_grid
        return replace(self.vision_shape, num_projected=rows * columns)

    def pool(self, values: Tensor) -> Tensor:
        return self.model.model.vision_resampler(values)

    def project_frames(self, rows: Tensor) -> Tensor:
        return self.projector(self.pool(rows))
