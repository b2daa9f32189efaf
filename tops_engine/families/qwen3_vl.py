"""Qwen3-VL: like Qwen2-VL, and features of several vision layers are added in the first decoder layers (deepstack)."""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

from transformers import Qwen3VLProcessor

from tops_engine.families.parts.packed_frames import bounds_of_a_frame, text_with_times
from tops_engine.families.parts.packed_tower import InterpolatedTower, PackedTower
from tops_engine.families.parts.processors import without_video
from tops_engine.families.parts.vision_signals import captured_calls
from tops_engine.families.prompt import Prompt, split_rows
from tops_engine.families.qwen2_vl import Qwen2VL
from tops_engine.families.visual_tokens import TowerRun
from tops_engine.grounding.formats import QWEN3, Format
from tops_engine.media.bounds import Bounds
from tops_engine.media.layout import VisualLayout
from tops_engine.media.videos import Video
from tops_engine.methods import VisualTokens


class Qwen3VL(Qwen2VL):
    """``Qwen3VLForConditionalGeneration`` and ``Qwen3VLMoeForConditionalGeneration``: Qwen/Qwen3-VL-8B-Instruct,
    -30B-A3B-Instruct and the other sizes, -Thinking.

    What the first decoder layers add to a token follows the token if it is kept. Merged tokens have that of the kept
    one.
    """

    model_types = ("qwen3_vl", "qwen3_vl_moe")
    checkpoints: ClassVar[dict[str, tuple[str, ...]]] = {
        "qwen3_vl": tuple(f"Qwen/Qwen3-VL-{size}-Instruct" for size in ("2B", "4B", "8B", "32B")),
        "qwen3_vl_moe": tuple(f"Qwen/Qwen3-VL-{size}-Instruct" for size in ("30B-A3B", "235B-A22B")),
    }
    processor_class = without_video(Qwen3VLProcessor)
    grounding: ClassVar[dict[str, Format]] = dict.fromkeys(model_types, QWEN3)

    def build_tower(self) -> PackedTower:
        return InterpolatedTower(self.visual)

    def frame_bounds(self, video: Video) -> Bounds:
        # This family's bounds are those of all frames together.
        return bounds_of_a_frame(self.processor.video_bounds, len(video.frames), self.visual.config.temporal_patch_size)

    def video_text(self, video: Video, layout: VisualLayout) -> str:
        rows, columns = layout.grids[0]
        return text_with_times(self.tokenizer, self.model.config, rows * columns, video.timestamps)

    def encode_run(self, prompts: Sequence[Prompt], run: TowerRun | None) -> list[list[VisualTokens]]:
        with captured_calls(*self.visual.deepstack_merger_list) as calls:
            encoded = super().encode_run(prompts, run)
        stacked = [call.output if run is None else run.restore(call.output[None])[0] for call in calls]
        features = iter(zip(*(split_rows(rows, prompts) for rows in stacked), strict=True))
        return [[dataclasses.replace(image, deepstack=next(features)) for image in images] for images in encoded]
