"""MiniCPM-V 4.6: the whole picture and slices of it, a token for 4 x 4 patches, over the decoder of Qwen3.5."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor, nn

from tops_engine.device.transfer import to_device
from tops_engine.errors import UnsupportedModel
from tops_engine.families.base import Family
from tops_engine.families.parts.merging_tower import MergingTower
from tops_engine.families.parts.tile_grid import overview_layout
from tops_engine.families.prompt import Prompt, split_rows
from tops_engine.families.qwen3_5 import HybridDecoder
from tops_engine.grounding.formats import MINICPM, Format
from tops_engine.media.layout import VisualLayout, frame_layout, grid_boxes
from tops_engine.media.videos import Video


class MiniCPMV46(Family):
    """``MiniCPMV4_6ForConditionalGeneration``: openbmb/MiniCPM-V-4.6 and -4.6-Thinking.

    The tower merges 2 x 2 patches behind one of its first layers and has no [CLS]: relevance is the mean attention that
    a token's patches receive in its last layer. The tokens between slices are text and are not pruned. A frame of a
    video is seen whole.
    """

    model_types: ClassVar[tuple[str, ...]] = ("minicpmv4_6",)
    checkpoints: ClassVar[dict[str, tuple[str, ...]]] = {
        "minicpmv4_6": ("openbmb/MiniCPM-V-4.6-Thinking", "openbmb/MiniCPM-V-4.6")
    }
    #: In transformers 5.17 the tower reads pictures of different sizes wrongly.
    oldest_transformers = "5.23"
    grounding: ClassVar[dict[str, Format]] = {"minicpmv4_6": MINICPM}
    takes_videos = True
    decoder_class = HybridDecoder
    tower: MergingTower

    @classmethod
    def load_processor(cls, source: str, revision: str | None) -> Any:
        # Not at the top: transformers 5.17 has another processor.
        from tops_engine.families.parts.minicpm_processor import PictureProcessor

        return PictureProcessor.load(source, revision)

    def build_tower(self) -> MergingTower:
        config = self.model.config
        if config.merger_times != 1:
            raise UnsupportedModel(
                f"The checkpoint merges patches {config.merger_times} times behind its vision tower; supported is "
                "once, as in openbmb/MiniCPM-V-4.6."
            )
        return MergingTower(self.model.model.vision_tower, config)

    @property
    def projector(self) -> nn.Module:
        return self.model.model.merger.mlp[0]

    @property
    def placeholders(self) -> set[str]:
        names = ("image_start", "image_end", "slice_start", "slice_end", "image_id_start", "image_id_end")
        return super().placeholders | {str(getattr(self.processor, f"{name}_token")) for name in names}

    def layouts(self, images: Sequence[Image.Image], pixels: dict[str, Tensor]) -> list[VisualLayout]:
        sizes = iter(self._token_grids(pixels["target_sizes"]) if images else [])
        layouts = []
        for image in images:
            whole, (rows, columns) = next(sizes), self._slices(image.height, image.width) or (0, 0)
            slices = [next(sizes) for _ in range(rows * columns)]
            layouts.append(overview_layout(whole, rows, columns, slices[0] if slices else (0, 0)))
        return layouts

    def picture_tokens(self, width: int, height: int, alone: bool = True) -> int:
        processor = self.processor.image_processor
        grid, size = self._slices(height, width), (height, width)
        scaling = (processor.scale_resolution, processor.patch_size, processor.downsample_mode)
        sizes = [processor.find_best_resize(size, *scaling, grid is None)]
        if grid is not None:
            sizes.append(processor.get_refine_size(size, grid, *scaling, True))
        side = processor.patch_size * self.tower.block
        return sum((rows // side) * (columns // side) for rows, columns in sizes)

    def read_videos(self, videos: Sequence[Video]) -> dict[str, Tensor]:
        frames = [self.processor.read_frame(frame) for video in videos for frame in video.frames]
        return {
            "pixel_values_videos": torch.cat([pixels for pixels, _ in frames], dim=-1),
            "target_sizes_videos": torch.tensor([size for _, size in frames], dtype=torch.int32),
        }

    def video_layouts(self, videos: Sequence[Video], pixels: dict[str, Tensor]) -> list[VisualLayout]:
        first_frames = [0, *itertools.accumulate(len(video.frames) for video in videos)][:-1]
        grids = self._token_grids(pixels["target_sizes_videos"][first_frames])
        return [
            frame_layout(len(video.frames), grid_boxes(*grid), grid) for video, grid in zip(videos, grids, strict=True)
        ]

    def video_text(self, video: Video, layout: VisualLayout) -> str:
        """Return the tokens of each frame between those that begin and end a picture."""
        rows, columns = layout.grids[0]
        tokens = str(self.video_token) * rows * columns
        return f"{self.processor.image_start_token}{tokens}{self.processor.image_end_token}" * len(video.frames)

    def project(self, prompts: Sequence[Prompt]) -> list[Tensor]:
        tiles = [tile for prompt in prompts for tile in self._tiles(prompt)]
        pixels = to_device(torch.cat([values for values, _ in tiles], dim=-1), self.decoder.device, self.decoder.dtype)
        rows = self.tower.features(pixels, torch.stack([size for _, size in tiles]))
        return split_rows(self.projector(rows), prompts)

    def signals(self, projector: Any, taps: Sequence[Any]) -> Any:
        return super().signals(replace(projector, input=projector.input[None]), taps)

    def arrange(self, values: Tensor, prompts: Sequence[Prompt]) -> list[Tensor]:
        return split_rows(values[0], prompts)

    def vision_flops(self, prompt: Prompt) -> int:
        tower = self.tower.flops([size.tolist() for _, size in self._tiles(prompt)])
        merged = 4 * self.tower.tower.config.hidden_size
        projector = 2 * merged * (merged + self.model.config.text_config.hidden_size)
        return tower + projector * sum(span.layout.num_tokens for span in prompt.spans)

    def _slices(self, height: int, width: int) -> tuple[int, int] | None:
        """Return rows and columns of the slices that a picture of this size is cut into; None if it is not."""
        processor = self.processor.image_processor
        if not processor.slice_mode:
            return None
        grid = processor.get_sliced_grid((height, width), processor.max_slice_nums, processor.scale_resolution)
        return None if grid is None else (grid[0], grid[1])

    def _token_grids(self, sizes: Tensor) -> list[tuple[int, int]]:
        """Return rows and columns of tokens of tiles of these rows and columns of patches, int [tiles, 2]."""
        return [(rows // self.tower.block, columns // self.tower.block) for rows, columns in sizes.tolist()]

    def _tiles(self, prompt: Prompt) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the pixels [1, 3, patch size, n] and the size in patches, int [2], of what the tower sees one by one.

        These are the whole pictures, their slices and the frames of videos, in the order of the prompt.
        """
        patch_size, pixels = self.model.config.vision_config.patch_size, prompt.pixels
        images, videos = (
            zip(
                torch.split(pixels[values], (pixels[sizes].prod(1) * patch_size).tolist(), -1),
                pixels[sizes],
                strict=True,
            )
            if sizes in pixels
            else iter(())
            for values, sizes in (("pixel_values", "target_sizes"), ("pixel_values_videos", "target_sizes_videos"))
        )
        for span in prompt.spans:
            missing = span.layout.num_tokens
            while missing:
                values, size = next(images if span.layout.frame is None else videos)
                missing -= int(size.prod()) // self.tower.block**2
                yield values, size
