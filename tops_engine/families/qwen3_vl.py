"""Qwen3-VL: like Qwen2-VL, and features of several vision layers are added in the first decoder layers (deepstack)."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import Qwen3VLProcessor
from transformers.vision_utils import get_vision_interpolation_indices_and_weights

from tops_engine.device.transfer import to_device
from tops_engine.families.parts.processors import without_video
from tops_engine.families.parts.qwen_video import Bounds
from tops_engine.families.parts.vision_signals import captured_calls
from tops_engine.families.prompt import Prompt
from tops_engine.families.qwen2_vl import Qwen2VL
from tops_engine.media.layout import VisualLayout
from tops_engine.media.videos import Video
from tops_engine.methods import VisualTokens


class Qwen3VL(Qwen2VL):
    """``Qwen3VLForConditionalGeneration``, the dense sizes: Qwen/Qwen3-VL-8B-Instruct, -2B, -4B, -32B, -Thinking.

    What the first decoder layers add to a token goes with it if it is kept, and with the kept one where tokens merge.
    """

    model_types = ("qwen3_vl",)
    checkpoints: ClassVar[dict[str, tuple[str, ...]]] = {
        "qwen3_vl": tuple(f"Qwen/Qwen3-VL-{size}-Instruct" for size in ("2B", "4B", "8B", "32B"))
    }
    processor_class = without_video(Qwen3VLProcessor)

    def tower_inputs(self, grids: Tensor) -> dict[str, Any]:
        config, device = self.visual.config, self.visual.device
        # Where each patch lies in the table of learned positions, which is stretched over the picture.
        indices, weights = get_vision_interpolation_indices_and_weights(
            grids,
            num_grid_per_side=self.visual.num_grid_per_side,
            mode=self.visual.interpolation_mode,
            align_corners=self.visual.interpolation_align_corners,
            spatial_merge_size=config.spatial_merge_size,
        )
        taps = {"interp_indices": to_device(indices, device), "interp_weights": to_device(weights, device)}
        return super().tower_inputs(grids) | taps

    def frame_bounds(self, video: Video) -> Bounds:
        # Here the bounds are those of all frames together.
        least, most = self.processor.video_bounds
        step = self.visual.config.temporal_patch_size
        count = math.ceil(len(video.frames) / step) * step
        return Bounds(math.ceil(least / count), most // count)

    def video_text(self, video: Video, layout: VisualLayout) -> str:
        """When each moment is shown, in the middle of its frames, and its tokens."""
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
        counts = [span.layout.num_tokens for prompt in prompts for span in prompt.spans]
        if not counts:
            return encoded
        features = iter(zip(*(torch.split(call.output, counts) for call in calls), strict=True))
        return [[dataclasses.replace(image, deepstack=next(features)) for image in images] for images in encoded]
