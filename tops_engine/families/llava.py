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
from tops_engine.families.parts.vision_tower import PatchTower
from tops_engine.families.prompt import Prompt
from tops_engine.media.layout import VisualLayout, grid_boxes


class Llava(Family):
    """``LlavaForConditionalGeneration``: llava-hf/llava-1.5-7b-hf, -13b-hf and others of their layout, and mini."""

    model_types: ClassVar[tuple[str, ...]] = ("llava",)
    checkpoints: ClassVar[dict[str, tuple[str, ...]]] = {
        "llava": ("mini", "llava-hf/llava-1.5-7b-hf", "llava-hf/llava-1.5-13b-hf")
    }
    clip_tower: ClassVar[bool] = True
    one_size: ClassVar[bool] = True
    vision_model_types = VISION_MODEL_TYPES
    default_chat_template: ClassVar[str | None] = VICUNA_TEMPLATE
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
        vision_tower = self.model.model.vision_tower
        pixel_values = torch.cat([prompt.pixels["pixel_values"] for prompt in prompts if prompt.spans])
        pixel_values = to_device(pixel_values, vision_tower.device, vision_tower.dtype)
        return list(self.model.model.get_image_features(pixel_values, return_dict=True).pooler_output)

    def arrange(self, values: Tensor, prompts: Sequence[Prompt]) -> list[Tensor]:
        return list(values)

    def vision_flops(self, prompt: Prompt) -> int:
        return self.tower.shape.flops(len(prompt.images))
