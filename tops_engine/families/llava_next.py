"""LLaVA-NeXT (1.6): AnyRes pictures, with a newline token after each row of the tiles.

Families that grew out of it hold other tiles, and frames of videos.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from tops_engine.device.transfer import to_device
from tops_engine.families.base import Family
from tops_engine.families.parts.anyres import AnyResTiles
from tops_engine.families.parts.chat_templates import VICUNA_TEMPLATE
from tops_engine.families.parts.llava_tower import VISION_MODEL_TYPES, llava_companions, llava_tower
from tops_engine.families.parts.pooled_frames import PooledFrames
from tops_engine.families.parts.tower_parts import in_parts
from tops_engine.families.parts.tower_run import PatchCut, TileRun, patch_cut, run_layers
from tops_engine.families.parts.vision_signals import Call, captured_calls, tile_numbers
from tops_engine.families.parts.vision_tower import PatchTower, Signals
from tops_engine.families.prompt import Prompt
from tops_engine.media.layout import VisualLayout
from tops_engine.media.videos import Video
from tops_engine.tower import Dedup, TowerOptions


class TowerInput(NamedTuple):
    """The input of the vision tower for one picture or video.

    Attributes
    ----------
    pixels : [t, 3, height, width], the tiles of a picture or the frames of a video.
    image_size : int64 [2], height and width of a picture; None for a video.
    """

    pixels: Tensor
    image_size: Tensor | None


class LlavaNext(Family):
    """``LlavaNextForConditionalGeneration``: llava-hf/llava-v1.6-vicuna-7b-hf, -mistral-7b-hf, Granite Vision 3 and
    others like them.

    Newline tokens are visual tokens like the others, but show no part of the picture and get no [CLS] attention: they
    compete for the budget and rarely win.

    Attributes
    ----------
    tiles : how pictures are cut and their patches ordered.
    frames : how frames of videos become tokens. Families that take videos set it.
    """

    model_types: ClassVar[tuple[str, ...]] = ("llava_next",)
    checkpoints: ClassVar[dict[str, tuple[str, ...]]] = {
        "llava_next": (
            "llava-hf/llava-v1.6-vicuna-7b-hf",
            "llava-hf/llava-v1.6-vicuna-13b-hf",
            "llava-hf/llava-v1.6-mistral-7b-hf",
            "llava-hf/llava-v1.6-34b-hf",
            "llava-hf/llama3-llava-next-8b-hf",
            "llava-hf/llava-next-72b-hf",
            "ibm-granite/granite-vision-3.2-2b",
            "ibm-granite/granite-vision-3.3-2b",
        )
    }
    clip_tower: ClassVar[bool] = True
    one_size: ClassVar[bool] = False
    vision_model_types = VISION_MODEL_TYPES
    default_chat_template: ClassVar[str | None] = VICUNA_TEMPLATE
    dedups: ClassVar[tuple[Dedup, ...]] = ("exact",)
    uncut_because: ClassVar[str | None] = None
    projects_twins: ClassVar[bool] = True
    tower: PatchTower
    frames: PooledFrames

    def __init__(self, model: Any, processor: Any) -> None:
        super().__init__(model, processor)
        self.companions = llava_companions(model)
        self.tiles = AnyResTiles(model)

    def build_tower(self) -> PatchTower:
        return llava_tower(self.model)

    @property
    def projector(self) -> torch.nn.Module:
        return self.model.model.multi_modal_projector

    def picture_tokens(self, width: int, height: int, alone: bool = True) -> int:
        return self.tiles.num_tokens(width, height, alone)

    def layouts(self, images: Sequence[Image.Image], pixels: dict[str, Tensor]) -> list[VisualLayout]:
        return self.tiles.layouts(images, _image_sizes(pixels))

    def read_videos(self, videos: Sequence[Video]) -> dict[str, Tensor]:
        frames = [self.processor.frame_processor(video.frames) for video in videos]
        most = max(len(video) for video in frames)
        # Videos of different lengths share a tensor. The frames that fill it up are left out before the vision tower.
        return {"pixel_values_videos": torch.stack([F.pad(v, (0,) * 7 + (most - len(v),)) for v in frames])}

    def video_layouts(self, videos: Sequence[Video], pixels: dict[str, Tensor]) -> list[VisualLayout]:
        return [self.frames.layout(video, self.processor.frame_processor) for video in videos]

    def project(self, prompts: Sequence[Prompt]) -> list[Tensor]:
        inputs = self._tower_inputs(prompts)
        return self._tokens(self._tower_features(torch.cat([seen.pixels for seen in inputs])), inputs)

    def tower_run(self, options: TowerOptions) -> TileRun:
        return TileRun(options, patch_cut(self.tower, options))

    def project_run(self, prompts: Sequence[Prompt], run: TileRun) -> list[Tensor]:
        inputs = self._tower_inputs(prompts)
        tiles = torch.cat([seen.pixels for seen in inputs])
        return self._tokens(run.rows(tiles, self._tower_features, self.tower.shape.num_patches), inputs)

    def tile_counts(self, prompt: Prompt) -> list[int]:
        return [len(seen.pixels) for seen in self._tower_inputs([prompt])]

    def _tokens(self, rows: Tensor, inputs: Sequence[TowerInput]) -> list[Tensor]:
        """Make the visual tokens of each picture and video of features of the tower, [t, patches, c]."""
        newline = self.model.model.image_newline
        return [
            self.frames.project(piece, self.projector, newline)
            if size is None
            else self.tiles.pack(self.projector(piece), size, newline)
            for piece, size in _pieces(rows, inputs)
        ]

    def arrange(self, values: Tensor, prompts: Sequence[Prompt]) -> list[Tensor]:
        newline = values.new_zeros(values.shape[-1])
        return [
            self.frames.arrange(piece, newline) if size is None else self.tiles.pack(piece, size, newline)
            for piece, size in _pieces(values, self._tower_inputs(prompts))
        ]

    def arrange_features(self, rows: Tensor, prompts: Sequence[Prompt]) -> list[Tensor]:
        newline = rows.new_zeros(rows.shape[-1])
        return [
            self.frames.arrange_features(piece, newline) if size is None else self.tiles.pack(piece, size, newline)
            for piece, size in _pieces(rows, self._tower_inputs(prompts))
        ]

    def signals(self, projector: Call, taps: Sequence[Call]) -> Signals:
        # The projector runs once for each picture and video, so its last call does not show everything.
        layers = taps[-len(self.tower.feature_layers) :]
        return super().signals(projector, taps) | {
            "encoder_features": lambda: self.tower.features(layers),
            "tiles": lambda: tile_numbers(self.tower.features(layers[:1])),
        }

    def vision_flops(self, prompt: Prompt) -> int:
        shape = self.tower.shape
        flops = shape.flops(sum(self.tiles.counts(_image_sizes(prompt.pixels))))
        if not prompt.videos:
            return flops
        if self.frames.before_projector:
            rows, columns = self.frames.grid
            shape = replace(shape, num_projected=rows * columns)
        return flops + shape.flops(sum(len(video.frames) for video in prompt.videos))

    def _tower_features(self, pixels: Tensor, cut: PatchCut | None = None) -> Tensor:
        """Run the vision tower: [t, 3, height, width] -> [t, patches, c]."""
        vision_tower = self.model.model.vision_tower
        pixels = to_device(pixels, vision_tower.device, vision_tower.dtype)
        if cut is None:
            return in_parts(self._whole_features, pixels)
        with captured_calls(*self.tower.feature_layers) as layers:
            run_layers(self.tower, pixels, cut)
        return self.tower.features(layers)

    def _whole_features(self, pixels: Tensor) -> Tensor:
        with captured_calls(*self.tower.feature_layers) as layers:
            self.model.model.vision_tower(pixels)
        return self.tower.features(layers)

    def _tower_inputs(self, prompts: Sequence[Prompt]) -> list[TowerInput]:
        """Return what the tower sees of each picture and video of all prompts, in the order of their spans."""
        inputs = []
        for prompt in prompts:
            pixels, sizes = prompt.pixels, _image_sizes(prompt.pixels)
            pictures = iter(zip(pixels.get("pixel_values", ()), self.tiles.counts(sizes), sizes, strict=True))
            videos = iter(pixels.get("pixel_values_videos", ()))
            for visual in prompt.visuals:
                if isinstance(visual, Video):
                    inputs.append(TowerInput(next(videos)[: len(visual.frames)], None))
                else:
                    # Pictures with fewer tiles than others are filled up; what fills them is left out.
                    picture, count, size = next(pictures)
                    inputs.append(TowerInput(picture[:count], size))
        return inputs


def _image_sizes(pixels: dict[str, Tensor]) -> Sequence[Tensor]:
    """Return height and width of each picture of a prompt, int64 [2] each."""
    return list(pixels.get("image_sizes", ()))


def _pieces(values: Tensor, inputs: Sequence[TowerInput]) -> list[tuple[Tensor, Tensor | None]]:
    """Split values of all that the tower saw, [t, ...], by picture and video, each with the size of the picture."""
    pieces = torch.split(values, [len(seen.pixels) for seen in inputs])
    return list(zip(pieces, [seen.image_size for seen in inputs], strict=True))
