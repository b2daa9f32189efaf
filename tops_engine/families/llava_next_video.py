"""LLaVA-NeXT-Video: LLaVA-NeXT for pictures; frames of videos with a quarter of the tokens."""

from typing import Any, ClassVar

from transformers import LlavaNextProcessor

from tops_engine.errors import UnsupportedModel
from tops_engine.families.llava_next import LlavaNext
from tops_engine.families.parts.frame_processor import CLIP_COLOURS, FrameProcessor
from tops_engine.families.parts.pooled_frames import PooledFrames

#: What transformers' ``LlavaNextVideoVideoProcessor`` takes if the checkpoint's config does not say.
FRAME_DEFAULTS: dict[str, Any] = {
    "size": {"shortest_edge": 224},
    "crop_size": {"height": 224, "width": 224},
    "do_center_crop": True,
    "resample": 3,
    **CLIP_COLOURS,
}


class LlavaNextVideo(LlavaNext):
    """``LlavaNextVideoForConditionalGeneration``: llava-hf/LLaVA-NeXT-Video-7B-hf, -7B-DPO-hf, -34B-hf and their kind.

    The patches of a frame are pooled before the projector. Videos have no newline tokens.
    """

    model_types = ("llava_next_video",)
    checkpoints: ClassVar[dict[str, tuple[str, ...]]] = {
        "llava_next_video": (
            "llava-hf/LLaVA-NeXT-Video-7B-hf",
            "llava-hf/LLaVA-NeXT-Video-7B-DPO-hf",
            "llava-hf/LLaVA-NeXT-Video-34B-hf",
        )
    }
    takes_videos = True
    uncut_because: ClassVar[str | None] = "behind which frames are pooled"
    #: The checkpoint's own processor writes the same prompts, but needs a video processor.
    processor_class = LlavaNextProcessor

    def __init__(self, model: Any, processor: Any) -> None:
        super().__init__(model, processor)
        config = model.config
        if config.spatial_pool_mode == "conv":
            raise UnsupportedModel("This checkpoint pools frames by a convolution; supported are averages and maxima.")
        grid = (self.tiles.side // config.spatial_pool_stride,) * 2
        self.frames = PooledFrames(grid, model.model.vision_resampler, newlines="no_token", before_projector=True)

    @classmethod
    def load_processor(cls, source: str, revision: str | None) -> Any:
        processor = super().load_processor(source, revision)
        processor.frame_processor = FrameProcessor.from_pretrained(source, revision, FRAME_DEFAULTS)
        return processor
