"""Command A Vision: tiles and the whole picture, a token for 2 x 2 patches, over Cohere's decoder."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor, nn

from tops_engine.device.transfer import to_device
from tops_engine.families.base import Family
from tops_engine.families.decoder import FULL, Decoder, Rope
from tops_engine.families.parts.cohere_processor import CohereProcessor
from tops_engine.families.parts.llava_tower import without_pooling_head
from tops_engine.families.parts.tile_grid import tiled_layout
from tops_engine.families.parts.tower_parts import in_parts
from tops_engine.families.parts.vision_tower import (
    LayerAttention,
    PatchTower,
    middle_layer,
    selected_layers,
    shallow_layer,
)
from tops_engine.families.prompt import Prompt, split_rows
from tops_engine.flops import VisionShape, patches_per_side
from tops_engine.media.layout import VisualLayout


class CohereDecoder(Decoder):
    """Global layers of Command A and Command R7B have no rotary embedding: they do not know where a token stands."""

    def queries(self, layer: int, hidden_states: Tensor, rope: Rope) -> Tensor:
        return super().queries(layer, hidden_states, self._rope_of(layer, rope))

    def keys(self, layer: int, hidden_states: Tensor, rope: Rope) -> Tensor:
        return super().keys(layer, hidden_states, self._rope_of(layer, rope))

    def _rope_of(self, layer: int, rope: Rope) -> Rope:
        """Return the rotary embedding that a layer uses: by no angle if it has none."""
        if self.text_model.config.model_type != "cohere2" or self.layer_types[layer] != FULL:
            return rope
        cos, sin = rope
        return torch.ones_like(cos), torch.zeros_like(sin)


class Cohere2Vision(Family):
    """``Cohere2VisionForConditionalGeneration``: CohereLabs/command-a-vision-07-2025.

    The tower has no [CLS]: relevance is the mean attention that a token's patches receive in the layer that feeds the
    projector. The line breaks after the tiles are text and are not pruned.
    """

    model_types: ClassVar[tuple[str, ...]] = ("cohere2_vision",)
    checkpoints: ClassVar[dict[str, tuple[str, ...]]] = {"cohere2_vision": ("CohereLabs/command-a-vision-07-2025",)}
    vision_model_types = ("siglip_vision_model",)
    text_model_types = ("cohere", "cohere2")
    decoder_class = CohereDecoder
    tower: PatchTower

    @classmethod
    def load_processor(cls, source: str, revision: str | None) -> Any:
        return CohereProcessor.load(source, revision)

    def pixel_settings(self, least: int | None, most: int | None) -> dict[str, Any]:
        processor = self.processor.image_processor
        tile = processor.size["height"] * processor.size["width"]
        return {} if most is None else {"max_patches": min(processor.max_patches, max(1, most // tile))}

    def picture_tokens(self, width: int, height: int, alone: bool = True) -> int:
        rows, columns = self.tile_grid(height, width)
        return (rows * columns + 1) * self.side**2

    def tile_grid(self, height: int, width: int) -> tuple[int, int]:
        """Return rows and columns of the tiles of a picture of this size; (0, 0) if it is not cut."""
        rows, columns = self.processor.image_processor.grid(height, width)
        return (rows, columns) if rows * columns > 1 else (0, 0)

    def build_tower(self) -> PatchTower:
        vision, tower = self.model.config.vision_config, self.model.model.vision_tower
        without_pooling_head(tower)
        layers = tower.encoder.layers
        feature_layer = selected_layers(layers, getattr(self.model.config, "vision_feature_layer", -1))[-1]
        return PatchTower(
            attention=LayerAttention.of(feature_layer),
            last_attention=LayerAttention.of(layers[-1]),
            middle_attention=LayerAttention.of(layers[middle_layer(len(layers))]),
            shallow_attention=LayerAttention.of(layers[shallow_layer(len(layers))]),
            shape=VisionShape.from_config(vision, False, 0, ()),
            block=int(self.model.config.downsample_factor),
        )

    @property
    def projector(self) -> nn.Module:
        # The first layer that has one row for each token: its patches, side by side.
        return self.model.model.multi_modal_projector.linear_1

    def project_rows(self, rows: Tensor) -> Tensor:
        projector = self.model.model.multi_modal_projector
        values, gate = self.gated(rows).chunk(2, dim=-1)
        return projector.linear_2(projector.act(gate) * values)

    def gated(self, rows: Tensor) -> Tensor:
        """Run the first linear layer of the projector, whose outputs are values and their gates."""
        return self.projector(rows)

    @property
    def side(self) -> int:
        """Tokens along a side of a tile."""
        return patches_per_side(self.model.config.vision_config) // self.tower.block

    @property
    def placeholders(self) -> set[str]:
        return super().placeholders | {self.processor.eoi_token, self.processor.img_line_break_token}

    def layouts(self, images: Sequence[Image.Image], pixels: dict[str, Tensor]) -> list[VisualLayout]:
        return [tiled_layout(*self.tile_grid(image.height, image.width), self.side) for image in images]

    def project(self, prompts: Sequence[Prompt]) -> list[Tensor]:
        tiles = torch.cat([prompt.pixels["pixel_values"] for prompt in prompts if prompt.spans])
        tiles = to_device(tiles, self.decoder.device, self.decoder.dtype)
        model = self.model.model
        features = in_parts(lambda part: model.get_image_features(part, return_dict=True).pooler_output, tiles)
        return self.arrange(features, prompts)

    def signals(self, projector: Any, taps: Sequence[Any]) -> Any:
        # The projector sees the tokens of a tile as a grid.
        return super().signals(replace(projector, input=projector.input.flatten(1, 2)), taps)

    def arrange(self, values: Tensor, prompts: Sequence[Prompt]) -> list[Tensor]:
        return split_rows(values.flatten(0, 1), prompts)

    def vision_flops(self, prompt: Prompt) -> int:
        num_tokens = sum(span.layout.num_tokens for span in prompt.spans)
        projector = self.model.model.multi_modal_projector
        weights = projector.linear_1.weight.numel() + projector.linear_2.weight.numel()
        return self.tower.shape.flops(num_tokens // self.side**2) + 2 * num_tokens * int(weights)
