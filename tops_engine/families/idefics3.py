"""Idefics3: tiles with row and column tokens between them, the whole picture after them, no [CLS]."""

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor
from transformers import Idefics3Processor

from tops_engine.device.transfer import to_device
from tops_engine.families.base import Family
from tops_engine.families.parts.tile_grid import tiled_layout
from tops_engine.families.parts.tower_parts import in_parts
from tops_engine.families.parts.tower_run import PatchCut, TileRun, patch_cut, run_layers
from tops_engine.families.parts.vision_tower import LayerAttention, PatchTower, TileLayers, middle_layer, shallow_layer
from tops_engine.families.prompt import Prompt, split_rows
from tops_engine.flops import VisionShape, patches_per_side
from tops_engine.media.layout import VisualLayout
from tops_engine.tower import Dedup, TowerOptions


class Idefics3(Family):
    """``Idefics3ForConditionalGeneration``: HuggingFaceM4/Idefics3-8B-Llama3 and the first SmolVLM.

    The tokens that name a tile's row and column are text and are not pruned.
    """

    model_types: ClassVar[tuple[str, ...]] = ("idefics3",)
    checkpoints: ClassVar[dict[str, tuple[str, ...]]] = {
        "idefics3": (
            "HuggingFaceM4/Idefics3-8B-Llama3",
            "HuggingFaceTB/SmolVLM-256M-Instruct",
            "HuggingFaceTB/SmolVLM-500M-Instruct",
            "HuggingFaceTB/SmolVLM-Instruct",
        )
    }
    #: SmolVLM's own processor writes the same prompts for pictures, but needs packages for videos.
    processor_class = Idefics3Processor
    dedups: ClassVar[tuple[Dedup, ...]] = ("exact",)
    uncut_because: ClassVar[str | None] = None
    tower: PatchTower

    @property
    def text_model(self) -> Any:
        return self.model.model.text_model

    def pixel_settings(self, least: int | None, most: int | None) -> dict[str, Any]:
        # Every picture is scaled to one longest side, whatever its own size, and then to whole tiles.
        longest, tile = self._sides
        if most is not None:
            longest = min(max(1, math.isqrt(most) // tile) * tile, longest)
        return {"size": {"longest_edge": longest}}

    def pixel_counts(self) -> list[int]:
        longest, tile = self._sides
        return [side**2 for side in range(tile, longest + 1, tile)]

    def picture_tokens(self, width: int, height: int, alone: bool = True) -> int:
        num_tiles, _, _ = self.processor.image_processor.get_number_of_image_patches(height, width)
        return max(1, num_tiles) * self.side**2

    @property
    def _sides(self) -> tuple[int, int]:
        """The longest side that pictures are scaled to, and that of a tile, in pixels."""
        image_processor = self.processor.image_processor
        return int(image_processor.size["longest_edge"]), int(image_processor.max_image_size["longest_edge"])

    def build_tower(self) -> PatchTower:
        config = self.model.config
        vision, block = config.vision_config, int(config.scale_factor)
        layers = self.model.model.vision_model.encoder.layers
        numbers = -1, middle_layer(len(layers)), shallow_layer(len(layers))
        attention, middle, shallow = (LayerAttention.of(layers[number]) for number in numbers)
        widths = (vision.hidden_size * block**2, config.text_config.hidden_size)
        shape = VisionShape.from_config(vision, False, (patches_per_side(vision) // block) ** 2, widths)
        run = TileLayers(self._embed, layers, LayerAttention.of)
        return PatchTower(attention, attention, middle, shallow, shape, block=block, layers=run)

    def _embed(self, tiles: Tensor) -> Tensor:
        """Return the input of the tower's first layer: [t, 3, height, width] -> [t, patches, d]."""
        embeddings = self.model.model.vision_model.embeddings
        grid = [side // embeddings.patch_size for side in tiles.shape[-2:]]
        shown = torch.ones(len(tiles), *grid, dtype=torch.bool, device=tiles.device)
        return embeddings(pixel_values=tiles, patch_attention_mask=shown)

    @property
    def projector(self) -> torch.nn.Module:
        return self.model.model.connector.modality_projection

    @property
    def side(self) -> int:
        """Tokens along a side of a tile."""
        return patches_per_side(self.model.config.vision_config) // self.tower.block

    def layouts(self, images: Sequence[Image.Image], pixels: dict[str, Tensor]) -> list[VisualLayout]:
        layouts = []
        for image in images:
            counted = self.processor.image_processor.get_number_of_image_patches(image.height, image.width)
            _, rows, columns = counted
            layouts.append(tiled_layout(rows, columns, self.side))
        return layouts

    def project(self, prompts: Sequence[Prompt]) -> list[Tensor]:
        return self.arrange(self._features(_tiles(prompts)), prompts)

    def tower_run(self, options: TowerOptions) -> TileRun:
        return TileRun(options, patch_cut(self.tower, options))

    def project_run(self, prompts: Sequence[Prompt], run: TileRun) -> list[Tensor]:
        return self.arrange(run.rows(_tiles(prompts), self._features, self.side**2), prompts)

    def tile_counts(self, prompt: Prompt) -> list[int]:
        return [span.layout.num_tokens // self.side**2 for span in prompt.spans]

    def _features(self, tiles: Tensor, cut: PatchCut | None = None) -> Tensor:
        """Run the vision tower and the projector: [t, 3, height, width] -> [t, tokens, d]."""
        tiles = to_device(tiles, self.decoder.device, self.decoder.dtype)
        if cut is not None:
            patches = self.model.model.vision_model.post_layernorm(run_layers(self.tower, tiles, cut))
            return self.projector(patches.unflatten(1, (-1, cut.block**2)).flatten(2))
        return in_parts(self._whole_features, tiles)

    def _whole_features(self, tiles: Tensor) -> Tensor:
        # The model takes a batch of tiles of each sample.
        features = self.model.model.get_image_features(tiles[None], return_dict=True).pooler_output
        # A list of [rows, d] for each sample, or (transformers 5.19 and before) [tiles, tokens, d].
        return torch.cat(list(features)).view(len(tiles), self.side**2, -1)

    def arrange(self, values: Tensor, prompts: Sequence[Prompt]) -> list[Tensor]:
        return split_rows(values.flatten(0, 1), prompts)

    def vision_flops(self, prompt: Prompt) -> int:
        return self.tower.shape.flops(sum(self.tile_counts(prompt)))


def _tiles(prompts: Sequence[Prompt]) -> Tensor:
    """Return the pixels of all tiles, [t, 3, height, width], of which the processor returns [1, tiles, ...]."""
    return torch.cat([prompt.pixels["pixel_values"] for prompt in prompts if prompt.spans], dim=1)[0]
