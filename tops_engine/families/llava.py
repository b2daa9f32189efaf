"""LLaVA-1.5: one picture, one grid of tokens, over any Llama-like text model (arXiv 2310.03744)."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor

from tops_engine.device.transfer import to_device
from tops_engine.families.base import Family
from tops_engine.families.parts.chat_templates import VICUNA_TEMPLATE
from tops_engine.families.parts.llava_tower import VISION_MODEL_TYPES, llava_companions, llava_tower
from tops_engine.families.parts.seen_area import check_shapes, seen_area
from tops_engine.families.parts.tower_parts import in_parts
from tops_engine.families.parts.tower_run import PatchCut, TileRun, patch_cut, run_layers
from tops_engine.families.parts.vision_signals import captured_calls
from tops_engine.families.parts.vision_tower import PatchTower
from tops_engine.families.prompt import Prompt
from tops_engine.media.layout import VisualLayout, grid_boxes
from tops_engine.tower import Dedup, TowerOptions


class Llava(Family):
    """``LlavaForConditionalGeneration``: llava-hf/llava-1.5-7b-hf, -13b-hf and others of their layout, and mini."""

    model_types: ClassVar[tuple[str, ...]] = ("llava",)
    checkpoints: ClassVar[dict[str, tuple[str, ...]]] = {
        "llava": (
            "mini",
            "llava-hf/llava-1.5-7b-hf",
            "llava-hf/llava-1.5-13b-hf",
            "fancyfeast/llama-joycaption-beta-one-hf-llava",
        )
    }
    clip_tower: ClassVar[bool] = True
    one_size: ClassVar[bool] = True
    vision_model_types = VISION_MODEL_TYPES
    default_chat_template: ClassVar[str | None] = VICUNA_TEMPLATE
    dedups: ClassVar[tuple[Dedup, ...]] = ("exact",)
    uncut_because: ClassVar[str | None] = None
    tower: PatchTower

    def __init__(self, model: Any, processor: Any) -> None:
        super().__init__(model, processor)
        self.companions = llava_companions(model)

    def build_tower(self) -> PatchTower:
        return llava_tower(self.model)

    @property
    def projector(self) -> torch.nn.Module:
        return self.model.model.multi_modal_projector

    def for_processor(self, images: Sequence[Image.Image]) -> Sequence[Any]:
        check_shapes(images, self.processor.image_processor)
        return images

    def layouts(self, images: Sequence[Image.Image], pixels: dict[str, Tensor]) -> list[VisualLayout]:
        if not images:
            return []
        patch_size = self.model.config.vision_config.patch_size
        height, width = pixels["pixel_values"].shape[-2:]
        grid = (height // patch_size, width // patch_size)
        view = torch.zeros(grid[0] * grid[1], dtype=torch.int64)
        areas = [seen_area(image.size, self.processor.image_processor) for image in images]
        return [VisualLayout(grid_boxes(*grid, area), view, (grid,)) for area in areas]

    def project(self, prompts: Sequence[Prompt]) -> list[Tensor]:
        return list(self._features(_pictures(prompts)))

    def tower_run(self, options: TowerOptions) -> TileRun:
        return TileRun(options, patch_cut(self.tower, options))

    def project_run(self, prompts: Sequence[Prompt], run: TileRun) -> list[Tensor]:
        return list(run.rows(_pictures(prompts), self._features, self.tower.shape.num_projected))

    def tile_counts(self, prompt: Prompt) -> list[int]:
        return [1] * len(prompt.images)

    def _features(self, pictures: Tensor, cut: PatchCut | None = None) -> Tensor:
        """Run the vision tower and the projector: [t, 3, height, width] -> [t, tokens, d]."""
        vision_tower = self.model.model.vision_tower
        pictures = to_device(pictures, vision_tower.device, vision_tower.dtype)
        if cut is None:
            return in_parts(self._whole_features, pictures)
        with captured_calls(*self.tower.feature_layers) as layers:
            run_layers(self.tower, pictures, cut)
        return self.projector(self.tower.features(layers))

    def _whole_features(self, pictures: Tensor) -> Tensor:
        features = self.model.model.get_image_features(pictures, return_dict=True).pooler_output
        return features if isinstance(features, Tensor) else torch.stack(list(features))

    def arrange(self, values: Tensor, prompts: Sequence[Prompt]) -> list[Tensor]:
        return list(values)

    def vision_flops(self, prompt: Prompt) -> int:
        return self.tower.shape.flops(len(prompt.images))


def _pictures(prompts: Sequence[Prompt]) -> Tensor:
    """Return the pixels of all pictures: [pictures, 3, height, width]."""
    return torch.cat([prompt.pixels["pixel_values"] for prompt in prompts if prompt.spans])
