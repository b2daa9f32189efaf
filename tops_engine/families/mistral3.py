"""Mistral Small 3, Magistral and Ministral 3: Pixtral's tower, a token for 2 x 2 patches, a token after each row."""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from transformers.image_utils import ChannelDimension
from transformers.models.ministral3.modeling_ministral3 import get_llama_4_attn_scale
from transformers.models.pixtral.image_processing_pil_pixtral import get_resize_output_image_size

from tops_engine.device.transfer import to_device
from tops_engine.errors import UnsupportedModel
from tops_engine.families.base import Family
from tops_engine.families.decoder import Decoder, Rope
from tops_engine.families.parts.pixtral_processor import PixtralProcessor
from tops_engine.families.parts.pixtral_tower import PixtralShape, PixtralTower
from tops_engine.families.parts.vision_tower import selected_layers
from tops_engine.families.prompt import Prompt
from tops_engine.media.layout import VisualLayout, grid_boxes
from tops_engine.methods import VisualTokens
from tops_engine.tower import WHOLE_TOWER, TowerOptions


class MistralDecoder(Decoder):
    """The layers of Ministral 3 scale queries by their position: by more than 1 beyond the length of pretraining."""

    def __init__(self, text_model: nn.Module, lm_head: nn.Module, position_axes: int = 1) -> None:
        super().__init__(text_model, lm_head, position_axes)
        self.scales_queries = self.text_model.config.model_type == "ministral3"
        if self.scales_queries and self.attention.startswith("flash"):
            raise UnsupportedModel(
                "Ministral 3 hands positions to flash attention, which reads a gap that pruning leaves as the end of a "
                "prompt; load it with attention=sdpa."
            )

    def rope(self, hidden_states: Tensor, position_ids: Tensor, layer_type: str) -> Rope:
        rope = super().rope(hidden_states, position_ids, layer_type)
        return (*rope, position_ids.view(-1, position_ids.shape[-1])) if self.scales_queries else rope

    def position_arguments(self, rope: Rope) -> dict[str, Any]:
        if not self.scales_queries:
            return super().position_arguments(rope)
        cos, sin, position_ids = rope
        return {"position_embeddings": (cos, sin), "position_ids": position_ids}

    def queries(self, layer: int, hidden_states: Tensor, rope: Rope) -> Tensor:
        queries = super().queries(layer, hidden_states, rope)
        if not self.scales_queries:
            return queries
        parameters = self.text_model.config.rope_parameters
        beta, length = parameters["llama_4_scaling_beta"], parameters["original_max_position_embeddings"]
        return queries * get_llama_4_attn_scale(rope[2][None], beta, length)[0].to(queries.dtype)


class Mistral3(Family):
    """``Mistral3ForConditionalGeneration``: mistralai/Mistral-Small-3.1-24B-Instruct-2503, the Ministral 3 sizes and
    others with a ``tokenizer.json``.

    A picture keeps its aspect ratio. The tokens after its rows are text and are not pruned. The tower has no [CLS]:
    relevance is the mean attention that a token's patches receive.
    """

    model_types = ("mistral3",)
    checkpoints: ClassVar[dict[str, tuple[str, ...]]] = {
        "mistral3": (
            "mistralai/Mistral-Small-3.1-24B-Instruct-2503",
            *(f"mistralai/Ministral-3-{size}-Instruct-2512-BF16" for size in ("3B", "8B", "14B")),
            *(f"mistralai/Ministral-3-{size}-Reasoning-2512" for size in ("3B", "8B", "14B")),
        )
    }
    vision_model_types = ("pixtral",)
    text_model_types = ("mistral", "ministral3")
    processor_class = PixtralProcessor
    decoder_class = MistralDecoder
    tower: PixtralTower

    def build_tower(self) -> PixtralTower:
        config, tower = self.model.config, self.model.model.vision_tower
        layer = selected_layers(tower.transformer.layers, config.vision_feature_layer)[-1]
        return PixtralTower(tower, layer, PixtralShape.from_config(config))

    @property
    def projector(self) -> nn.Module:
        # The first layer that has one row for each visual token: the patches of a token, side by side.
        return self.model.model.multi_modal_projector.patch_merger.merging_layer

    def project_rows(self, rows: Tensor) -> Tensor:
        projector = self.model.model.multi_modal_projector
        return projector.linear_2(projector.act(projector.linear_1(self.projector(rows))))

    @property
    def placeholders(self) -> set[str]:
        return super().placeholders | {self.processor.image_break_token, self.processor.image_end_token}

    def picture_tokens(self, width: int, height: int, alone: bool = True) -> int:
        longest = self.processor.image_processor.size["longest_edge"]
        block = self.processor.patch_size * self.processor.spatial_merge_size
        # The function reads nothing but the shape.
        picture = np.broadcast_to(np.uint8(0), (height, width, 3))
        sides = get_resize_output_image_size(picture, longest, block, ChannelDimension.LAST)
        return math.prod(side // block for side in sides)

    def layouts(self, images: Sequence[Image.Image], pixels: dict[str, Tensor]) -> list[VisualLayout]:
        block = self.processor.patch_size * self.processor.spatial_merge_size
        sizes = pixels["image_sizes"].tolist() if images else []
        grids = [(height // block, width // block) for height, width in sizes]
        return [VisualLayout(grid_boxes(*grid), torch.zeros(grid[0] * grid[1]).long(), (grid,)) for grid in grids]

    def encode(self, prompts: Sequence[Prompt], options: TowerOptions = WHOLE_TOWER) -> list[list[VisualTokens]]:
        # One by one: the tower computes attention between the patches of all pictures of a call, and masks most of it.
        return [[super(Mistral3, self).encode([one])[0][0] for one in _single_pictures(prompt)] for prompt in prompts]

    def project(self, prompts: Sequence[Prompt]) -> list[Tensor]:
        (prompt,) = prompts
        pixel_values = to_device(prompt.pixels["pixel_values"], self.decoder.device, self.decoder.dtype)
        sizes, model = prompt.pixels["image_sizes"], self.model.model
        # As get_image_features, which fails on a picture of one token.
        states = model.vision_tower(pixel_values, image_sizes=sizes, output_hidden_states=True).hidden_states
        layers = self.model.config.vision_feature_layer
        chosen = [states[layer] for layer in ([layers] if isinstance(layers, int) else layers)]
        return [model.multi_modal_projector(torch.cat(chosen, dim=-1).squeeze(0), sizes)]

    def signals(self, projector: Any, taps: Sequence[Any]) -> Any:
        rows = dataclasses.replace(projector, input=projector.input.view(1, -1, projector.input.shape[-1]))
        return super().signals(rows, taps)

    def arrange(self, values: Tensor, prompts: Sequence[Prompt]) -> list[Tensor]:
        return list(values)

    def vision_flops(self, prompt: Prompt) -> int:
        block = self.tower.shape.block**2
        return sum(self.tower.shape.flops(span.layout.num_tokens * block) for span in prompt.spans)


def _single_pictures(prompt: Prompt) -> Iterator[Prompt]:
    """Split a prompt into one for each picture, without the padding to the largest."""
    for index, (span, image) in enumerate(zip(prompt.spans, prompt.images, strict=True)):
        size = prompt.pixels["image_sizes"][index : index + 1]
        height, width = size[0].tolist()
        pixels = prompt.pixels["pixel_values"][index : index + 1, :, :height, :width]
        yield dataclasses.replace(
            prompt, spans=[span], images=[image], pixels={"pixel_values": pixels, "image_sizes": size}
        )
