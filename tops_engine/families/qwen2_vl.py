"""Qwen2-VL and Qwen2.5-VL: pictures and videos in their own resolution, a token for 2 x 2 patches, positions in 3-D."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor
from transformers import Qwen2VLProcessor

from tops_engine.device.transfer import to_device
from tops_engine.families.base import Family
from tops_engine.families.parts.packed_frames import pack_frames, video_bounds
from tops_engine.families.parts.packed_run import PackedRun
from tops_engine.families.parts.packed_tower import PackedTower
from tops_engine.families.parts.processors import without_video
from tops_engine.families.prompt import Prompt, split_rows
from tops_engine.grounding.formats import QWEN2, QWEN2_5, Format, Size
from tops_engine.media.bounds import Bounds
from tops_engine.media.layout import VisualLayout, frame_layout, grid_boxes
from tops_engine.media.videos import Video
from tops_engine.tower import Dedup, TowerOptions

#: Visual tokens of a frame if the checkpoint does not say. These are the limits in the family's own examples.
LEAST_FRAME_TOKENS, MOST_FRAME_TOKENS = 128, 768


class Qwen2VL(Family):
    """``Qwen2VLForConditionalGeneration`` and ``Qwen2_5_VLForConditionalGeneration``: Qwen/Qwen2-VL-7B-Instruct,
    Qwen/Qwen2.5-VL-7B-Instruct and the other sizes.
    """

    model_types: ClassVar[tuple[str, ...]] = ("qwen2_vl", "qwen2_5_vl")
    checkpoints: ClassVar[dict[str, tuple[str, ...]]] = {
        "qwen2_vl": tuple(f"Qwen/Qwen2-VL-{size}-Instruct" for size in ("2B", "7B", "72B")),
        "qwen2_5_vl": tuple(f"Qwen/Qwen2.5-VL-{size}-Instruct" for size in ("3B", "7B", "32B", "72B")),
    }
    processor_class = without_video(Qwen2VLProcessor)
    takes_videos = True
    grounding: ClassVar[dict[str, Format]] = {"qwen2_vl": QWEN2, "qwen2_5_vl": QWEN2_5}
    position_axes = 3
    dedups: ClassVar[tuple[Dedup, ...]] = ("exact", "patches")
    uncut_because: ClassVar[str | None] = None
    tower: PackedTower

    @classmethod
    def load_processor(cls, source: str, revision: str | None) -> Any:
        processor = super().load_processor(source, revision)
        token = (processor.image_processor.patch_size * processor.image_processor.merge_size) ** 2
        default = Bounds(LEAST_FRAME_TOKENS * token, MOST_FRAME_TOKENS * token)
        processor.video_bounds = video_bounds(source, revision, default)
        return processor

    def pixel_settings(self, least: int | None, most: int | None) -> dict[str, Any]:
        size = self.processor.image_processor.size
        own = Bounds(size["shortest_edge"], size["longest_edge"]).within(least, most)
        return {"size": {"shortest_edge": own.least, "longest_edge": own.most}}

    def picture_tokens(self, width: int, height: int, alone: bool = True) -> int:
        num_patches: int = self.processor.image_processor.get_number_of_image_patches(height, width)
        return num_patches // self.visual.config.spatial_merge_size**2

    @property
    def visual(self) -> Any:
        """The vision tower's module."""
        return self.model.model.visual

    def build_tower(self) -> PackedTower:
        return PackedTower(self.visual)

    @property
    def projector(self) -> torch.nn.Module:
        return self.visual.merger

    def position_ids(self, input_ids: Tensor, pixels: dict[str, Tensor]) -> Tensor:
        if "image_grid_thw" not in pixels and "video_grid_thw" not in pixels:
            return super().position_ids(input_ids, pixels)
        inputs = {name: value for name, value in pixels.items() if not name.startswith("pixel_values")}
        positions, _ = self.model.model.get_rope_index(input_ids[None], **inputs)
        return positions[:, 0]

    def layouts(self, images: Sequence[Image.Image], pixels: dict[str, Tensor]) -> list[VisualLayout]:
        grids = self._token_grids(pixels["image_grid_thw"]) if images else []
        return [
            VisualLayout(grid_boxes(*grid), torch.zeros(grid[0] * grid[1], dtype=torch.int64), (grid,))
            for _, grid in grids
        ]

    def processed_sizes(self, prompt: Prompt) -> list[Size]:
        side = self.processor.image_processor.patch_size
        return [(side * columns, side * rows) for _, rows, columns in prompt.pixels["image_grid_thw"].tolist()]

    def read_videos(self, videos: Sequence[Video]) -> dict[str, Tensor]:
        image_processor = self.processor.image_processor
        packed = [pack_frames(video.frames, image_processor, self.frame_bounds(video)) for video in videos]
        pixels = {
            "pixel_values_videos": torch.cat([patches for patches, _ in packed]),
            "video_grid_thw": torch.tensor([grid for _, grid in packed]),
        }
        if hasattr(self.visual.config, "tokens_per_second"):
            seconds = [image_processor.temporal_patch_size / video.fps for video in videos]
            pixels["second_per_grid_ts"] = torch.tensor(seconds)
        return pixels

    def frame_bounds(self, video: Video) -> Bounds:
        """Return the limits of the pixels that a frame is scaled to."""
        return self.processor.video_bounds

    def video_layouts(self, videos: Sequence[Video], pixels: dict[str, Tensor]) -> list[VisualLayout]:
        grids = self._token_grids(pixels["video_grid_thw"])
        step = self.visual.config.temporal_patch_size
        return [frame_layout(times, grid_boxes(*grid), grid, step) for times, grid in grids]

    def project(self, prompts: Sequence[Prompt]) -> list[Tensor]:
        patches = [patches for prompt in prompts for patches, _ in _visuals(prompt)]
        pixel_values = to_device(torch.cat(patches), self.visual.device, self.visual.dtype)
        # The tower reads a picture as a video of one moment, and all of them go through it at once. The grids stay on
        # the host: on a GPU, the tower's computations with them would make the host wait.
        return self.features(pixel_values, _grids(prompts))

    def tower_run(self, options: TowerOptions) -> PackedRun:
        return PackedRun(options, self.tower)

    def project_run(self, prompts: Sequence[Prompt], run: PackedRun) -> list[Tensor]:
        patches = torch.cat([patches for prompt in prompts for patches, _ in _visuals(prompt)])

        def features(pixels: Tensor, grids: Tensor) -> list[Tensor]:
            return self.features(to_device(pixels, self.visual.device, self.visual.dtype), grids)

        return split_rows(run.tokens(patches, _grids(prompts), features), prompts)

    def features(self, pixel_values: Tensor, grids: Tensor) -> list[Tensor]:
        """Return the tokens [n, d] of each picture and video.

        Parameters
        ----------
        pixel_values : [p, values], the patches of all of them.
        grids : int64 [items, 3] on the CPU: times, rows and columns of the patches of each.
        """
        features = self.model.model.get_image_features(
            pixel_values, grids, return_dict=True, **self.tower.inputs(grids)
        )
        return list(features.pooler_output)

    def project_rows(self, rows: Tensor) -> Tensor:
        # The merger takes patches, and a row holds those of a token.
        return self.visual.merger(rows.view(-1, self.tower.shape.hidden_size))

    def arrange(self, values: Tensor, prompts: Sequence[Prompt]) -> list[Tensor]:
        return split_rows(self.tower.in_prompt_order(values[0], _grids(prompts)), prompts)

    def vision_flops(self, prompt: Prompt) -> int:
        return self.tower.flops(_grids([prompt])) if prompt.spans else 0

    def _token_grids(self, grids: Tensor) -> list[tuple[int, tuple[int, int]]]:
        """Return times, and (rows, columns) of tokens, of grids of patches."""
        side = self.visual.config.spatial_merge_size
        return [(times, (rows // side, columns // side)) for times, rows, columns in grids.tolist()]


def _grids(prompts: Sequence[Prompt]) -> Tensor:
    """Return times, rows and columns of patches of all pictures and videos, in the order of the spans: int64 [n, 3]."""
    return torch.stack([grid for prompt in prompts for _, grid in _visuals(prompt)])


def _visuals(prompt: Prompt) -> list[tuple[Tensor, Tensor]]:
    """Return patches [p, values] and grid [3] of each picture and video, in the order of the spans."""
    pixels = prompt.pixels
    images, videos = (
        zip(torch.split(pixels[values], pixels[grids].prod(dim=1).tolist()), pixels[grids], strict=True)
        if grids in pixels
        else iter(())
        for values, grids in (("pixel_values", "image_grid_thw"), ("pixel_values_videos", "video_grid_thw"))
    )
    return [next(images if span.layout.frame is None else videos) for span in prompt.spans]
