"""Gemma 3: pooled SigLIP patches, sliding and global layers, pictures whose tokens attend to each other both ways."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor

from tops_engine.device.transfer import to_device
from tops_engine.errors import UnsupportedModel
from tops_engine.families.base import Family
from tops_engine.families.decoder import Decoder, Rope
from tops_engine.families.parts.tower_parts import in_parts
from tops_engine.families.parts.tower_run import PatchCut, TileRun
from tops_engine.families.parts.vision_tower import LayerAttention, PatchTower, middle_layer, shallow_layer
from tops_engine.families.prompt import Prompt
from tops_engine.flops import VisionShape, patches_per_side
from tops_engine.grounding.formats import GEMMA, Format
from tops_engine.media.layout import VisualLayout, grid_boxes
from tops_engine.tower import Dedup, TowerOptions


class Gemma3Decoder(Decoder):
    """Sliding and global layers have rotary embeddings of their own; a picture's tokens see all of the picture."""

    def attends_both_ways(self, _layer_type: str) -> bool:
        return True

    def rope(self, hidden_states: Tensor, position_ids: Tensor, layer_type: str) -> Rope:
        return self.text_model.rotary_emb(hidden_states, position_ids.view(-1, position_ids.shape[-1]), layer_type)


class Gemma3(Family):
    """``Gemma3ForConditionalGeneration``: google/gemma-3-4b-it, -12b-it and -27b-it.

    A picture is one square of 256 tokens, each the mean of 4 x 4 patches. The tower has no [CLS]: relevance is the mean
    attention that a token's patches receive in its last layer.
    """

    model_types = ("gemma3",)
    checkpoints: ClassVar[dict[str, tuple[str, ...]]] = {
        "gemma3": tuple(f"google/gemma-3-{size}-it" for size in ("4b", "12b", "27b"))
    }
    vision_model_types = ("siglip_vision_model",)
    grounding: ClassVar[dict[str, Format]] = {"gemma3": GEMMA}
    one_size = True
    decoder_class = Gemma3Decoder
    dedups: ClassVar[tuple[Dedup, ...]] = ("exact",)
    uncut_because: ClassVar[str | None] = "behind which blocks of 4 x 4 patches are averaged"
    tower: PatchTower

    @classmethod
    def load_processor(cls, source: str, revision: str | None) -> Any:
        processor = super().load_processor(source, revision)
        if processor.image_processor.do_pan_and_scan:
            raise UnsupportedModel(
                "The checkpoint's image processor cuts pictures into crops (pan and scan), which is not supported; "
                'set "do_pan_and_scan": false in its preprocessor_config.json.'
            )
        return processor

    def build_tower(self) -> PatchTower:
        vision, text = self.model.config.vision_config, self.model.config.text_config
        layers = self.model.model.vision_tower.encoder.layers
        numbers = -1, middle_layer(len(layers)), shallow_layer(len(layers))
        attention, middle, shallow = (LayerAttention.of(layers[number]) for number in numbers)
        shape = VisionShape.from_config(vision, False, self.side**2, (vision.hidden_size, text.hidden_size))
        return PatchTower(attention, attention, middle, shallow, shape, block=patches_per_side(vision) // self.side)

    @property
    def side(self) -> int:
        """Tokens along a side of a picture."""
        return int(self.model.model.multi_modal_projector.tokens_per_side)

    @property
    def projector(self) -> torch.nn.Module:
        # The first part of the projector behind the pooling: it gets one row for each visual token.
        return self.model.model.multi_modal_projector.mm_soft_emb_norm

    def project_rows(self, rows: Tensor) -> Tensor:
        return self.projector(rows) @ self.model.model.multi_modal_projector.mm_input_projection_weight

    def layouts(self, images: Sequence[Image.Image], pixels: dict[str, Tensor]) -> list[VisualLayout]:
        grid = (self.side, self.side)
        return [VisualLayout(grid_boxes(*grid), torch.zeros(self.side**2).long(), (grid,)) for _ in images]

    def project(self, prompts: Sequence[Prompt]) -> list[Tensor]:
        return list(self._features(_pictures(prompts)))

    def tower_run(self, options: TowerOptions) -> TileRun:
        return TileRun(options, None)

    def project_run(self, prompts: Sequence[Prompt], run: TileRun) -> list[Tensor]:
        return list(run.rows(_pictures(prompts), self._features, self.side**2))

    def tile_counts(self, prompt: Prompt) -> list[int]:
        return [1] * len(prompt.images)

    def _features(self, pictures: Tensor, _cut: PatchCut | None = None) -> Tensor:
        """Run the vision tower and the projector: [t, 3, height, width] -> [t, tokens, d]."""
        pictures = to_device(pictures, self.decoder.device, self.decoder.dtype)
        model = self.model.model
        return in_parts(lambda part: model.get_image_features(part, return_dict=True).pooler_output, pictures)

    def arrange(self, values: Tensor, prompts: Sequence[Prompt]) -> list[Tensor]:
        return list(values)

    def vision_flops(self, prompt: Prompt) -> int:
        return self.tower.shape.flops(len(prompt.images))


def _pictures(prompts: Sequence[Prompt]) -> Tensor:
    """Return the pixels of all pictures: [pictures, 3, height, width]."""
    return torch.cat([prompt.pixels["pixel_values"] for prompt in prompts if prompt.spans])
