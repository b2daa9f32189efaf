"""LLaVA-1.5: one picture, one grid of tokens, over any Llama-like text model."""

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor

from tops_engine.device.transfer import to_device
from tops_engine.errors import InvalidInput
from tops_engine.families.parts.clip_companion import ClipCompanion
from tops_engine.families.prompt import Prompt
from tops_engine.families.tower import PlainTower
from tops_engine.flops import VisionShape, patches_per_side
from tops_engine.media.layout import VisualLayout, grid_boxes
from tops_engine.methods import ClipEmbeddings

VICUNA_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'][0]['text'] + ' ' }}{% else %}"
    "{{ 'USER: ' if message['role'] == 'user' else 'ASSISTANT: ' }}"
    "{% for part in message['content'] %}"
    "{{ {'image': '<image>\n', 'video': '<video>\n'}.get(part['type'], part['text']) }}{% endfor %}"
    "{{ ' ' if message['role'] == 'user' else '</s>' }}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


class ClipLike(PlainTower, register=False):
    """What the LLaVA families share: a CLIP or SigLIP tower, one hidden state of which feeds a two-layer projector."""

    vision_model_types = ("clip_vision_model", "siglip_vision_model")

    def __init__(self, model: Any, processor: Any) -> None:
        super().__init__(model, processor)
        self.vision_shape = self.make_vision_shape()
        self._companions: dict[str, ClipCompanion] = {}

    def make_vision_shape(self) -> VisionShape:
        config = self.model.config
        vision, layers, text_width = config.vision_config, config.vision_feature_layer, config.text_config.hidden_size
        width = vision.hidden_size * (1 if isinstance(layers, int) else len(layers))
        num_patches = patches_per_side(vision) ** 2
        return VisionShape.from_config(vision, self.has_cls, num_patches, (width, text_width, text_width))

    @property
    def projector(self) -> torch.nn.Module:
        return self.model.model.multi_modal_projector

    @property
    def vision_layers(self) -> Sequence[Any]:
        return self.model.model.vision_tower.encoder.layers

    def clip_embeddings(self, model: str | None, patches: Tensor, question: str) -> ClipEmbeddings:
        if not self.has_cls:
            return super().clip_embeddings(model, patches, question)
        companion = self._companion(model)
        return ClipEmbeddings(companion.embed_patches(patches), companion.embed_text(question))

    def to(self, device: torch.device) -> None:
        for module in (self.model, *self._companions.values()):
            module.to(device)

    def _companion(self, model: str | None) -> ClipCompanion:
        """The CLIP model named, or the one in the checkpoint's own folder ``clip``; loaded once for this family."""
        name = model or str(Path(self.model.name_or_path) / "clip")
        if model is None and not Path(name).is_dir():
            raise InvalidInput(
                "This checkpoint brings no CLIP text tower; name the CLIP model that its vision tower is from, such as "
                "clip=openai/clip-vit-large-patch14-336 for LLaVA."
            )
        if name not in self._companions:
            width = self.model.config.vision_config.hidden_size
            self._companions[name] = ClipCompanion(name, width, self.decoder.device)
        return self._companions[name]

    @property
    def has_cls(self) -> bool:
        return self.model.config.vision_config.model_type == "clip_vision_model"

    @abstractmethod
    def num_tiles(self, prompt: Prompt) -> int:
        """How many pictures the vision tower sees for this prompt."""

    def vision_flops(self, prompt: Prompt) -> int:
        return self.vision_shape.flops(self.num_tiles(prompt))


class Llava(ClipLike):
    """``LlavaForConditionalGeneration``: llava-hf/llava-1.5-7b-hf, -13b-hf and others of their layout, and mini."""

    model_types = ("llava",)
    checkpoints: ClassVar[dict[str, tuple[str, ...]]] = {
        "llava": ("mini", "llava-hf/llava-1.5-7b-hf", "llava-hf/llava-1.5-13b-hf")
    }
    clip_tower = True
    default_chat_template = VICUNA_TEMPLATE

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

    def num_tiles(self, prompt: Prompt) -> int:
        return len(prompt.images)


def seen_area(size: tuple[int, int], image_processor: Any) -> tuple[float, float, float, float]:
    """Which part of a picture of (width, height) the processor shows the model: left, top, right, bottom as fractions.

    Below 0 or above 1 where the processor pads.
    """
    width, height = size
    if getattr(image_processor, "do_pad", False):
        return padded_area(size)
    seen_width, seen_height = float(width), float(height)
    resized = dict(image_processor.size) if image_processor.do_resize else {}
    if image_processor.do_center_crop:
        crop = dict(image_processor.crop_size)
        scale_x = scale_y = resized.get("shortest_edge", min(width, height)) / min(width, height)
        if "height" in resized:
            scale_x, scale_y = resized["width"] / width, resized["height"] / height
        seen_width, seen_height = crop["width"] / scale_x, crop["height"] / scale_y
    margin_x, margin_y = (width - seen_width) / 2 / width, (height - seen_height) / 2 / height
    return margin_x, margin_y, 1 - margin_x, 1 - margin_y


def padded_area(size: tuple[int, int]) -> tuple[float, float, float, float]:
    """The square that a picture of (width, height) is in the middle of, as fractions of the picture."""
    margin_x, margin_y = ((side - max(size)) / 2 / side for side in size)
    return margin_x, margin_y, 1 - margin_x, 1 - margin_y
