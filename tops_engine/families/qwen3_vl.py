"""Qwen3-VL: like Qwen2-VL, and features of several vision layers are added in the first decoder layers (deepstack)."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor
from transformers import Qwen3VLProcessor
from transformers.vision_utils import get_vision_interpolation_indices_and_weights

from tops_engine.device.transfer import to_device
from tops_engine.families.parts.packed_frames import Bounds
from tops_engine.families.parts.packed_tower import PackedTower
from tops_engine.families.parts.processors import without_video
from tops_engine.families.parts.vision_signals import captured_calls
from tops_engine.families.prompt import Prompt, split_rows
from tops_engine.families.qwen2_vl import Qwen2VL
from tops_engine.media.layout import VisualLayout
from tops_engine.media.videos import Video
from tops_engine.methods import VisualTokens


class InterpolatedTower(PackedTower):
    """A Qwen-VL tower with a table of learned positions, which is interpolated to the size of the picture."""

    def inputs(self, grids: Tensor) -> dict[str, Any]:
        visual = self.visual
        indices, weights = get_vision_interpolation_indices_and_weights(
            grids,
            num_grid_per_side=visual.num_grid_per_side,
            mode=visual.interpolation_mode,
            align_corners=visual.interpolation_align_corners,
            spatial_merge_size=visual.config.spatial_merge_size,
        )
        positions = {
            "interp_indices": to_device(indices, visual.device),
            "interp_weights": to_device(weights, visual.device),
        }
        return super().inputs(grids) | positions


class Qwen3VL(Qwen2VL):
    """``Qwen3VLForConditionalGeneration``, the dense sizes: Qwen/Qwen3-VL-8B-Instruct, -2B, -4B, -32B, -Thinking.

    What the first decoder layers add to a token follows the token if it is kept. Merged tokens have that of the kept
    one.
    """

    model_types = ("qwen3_vl",)
    checkpoints: ClassVar[dict[str, tuple[str, ...]]] = {
        "qwen3_vl": tuple(f"Qwen/Qwen3-VL-{size}-Instruct" for size in ("2B", "4B", "8B", "32B"))
    }
    processor_class = without_video(Qwen3VLProcessor)

    def build_tower(self) -> PackedTower:
        return InterpolatedTower(self.visual)

    def frame_bounds(self, video: Video) -> Bounds:
        # This family's bounds are those of all frames together.
        least, most = self.processor.video_bounds
        step = self.visual.config.temporal_patch_size
        count = math.ceil(len(video.frames) / step) * step
        return Bounds(math.ceil(least / count), most // count)

    def video_text(self, video: Video, layout: VisualLayout) -> str:
        """Return, for each group of frames that share tokens, the time of its middle and its tokens."""
        step = self.visual.config.temporal_patch_size
        seconds = video.timestamps + video.timestamps[-1:] * (-len(video.timestamps) % step)
        rows, columns = layout.grids[0]
        config = self.model.config
        start, end = self.tokenizer.convert_ids_to_tokens([config.vision_start_token_id, config.vision_end_token_id])
        tokens = f"{start}{str(self.video_token) * (rows * columns)}{end}"
        return "".join(
            f"<{(seconds[first] + seconds[first + step - 1]) / 2:.1f} seconds>{tokens}"
            for first in range(0, len(seconds), step)
        )

    def encode(self, prompts: Sequence[Prompt]) -> list[list[VisualTokens]]:
        with captured_calls(*self.visual.deepstack_merger_list) as calls:
            encoded = super().encode(prompts)
        if not any(prompt.spans for prompt in prompts):
            return encoded
        features = iter(zip(*(split_rows(call.output, prompts) for call in calls), strict=True))
        return [[dataclasses.replace(image, deepstack=next(features)) for image in images] for images in encoded]
