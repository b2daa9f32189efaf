"""LLaVA-NeXT-Video: LLaVA-NeXT for pictures; frames of videos with a quarter of the tokens."""

from functools import partial
from typing import Any, ClassVar

from transformers import LlavaNextProcessor

from tops_engine.families.llava_next import LlavaNext
from tops_engine.families.parts.frame_processor import CLIP_COLOURS, FrameProcessor
from tops_engine.families.parts.pooled_frames import PooledFrames
from tops_engine.families.parts.tile_grid import block_means
from tops_engine.families.prompt import Prompt

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

    The patches of a frame are pooled before the projector, by an average, a maximum or a convolution. Videos have no
    newline tokens.
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
        config, pool = model.config, model.model.vision_resampler
        stride = config.spatial_pool_stride
        has_weights = config.spatial_pool_mode == "conv"
        self.frames = PooledFrames(
            grid=(self.tiles.side // stride,) * 2,
            # A convolution is for features; what else is known of patches is averaged.
            pool=partial(block_means, block=stride) if has_weights else pool,
            newlines="no_token",
            before_projector=True,
            pool_features=pool if has_weights else None,
        )

    @classmethod
    def load_processor(cls, source: str, revision: str | None) -> Any:
        processor = super().load_processor(source, revision)
        processor.frame_processor = FrameProcessor.from_pretrained(source, revision, FRAME_DEFAULTS)
        return processor

    def vision_flops(self, prompt: Prompt) -> int:
        flops = super().vision_flops(prompt)
        if self.frames.pool_features is None:
            return flops
        weights = self.model.model.vision_resampler.pool.weight.numel()
        tokens = self.frames.grid[0] * self.frames.grid[1] * sum(len(video.frames) for video in prompt.videos)
        return flops + 2 * tokens * int(weights)
