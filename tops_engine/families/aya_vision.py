"""Aya Vision: Command A Vision's parts with numbered tiles, in another grid."""

from typing import Any, ClassVar

from torch import Tensor, nn
from transformers import AyaVisionProcessor

from tops_engine.families.cohere2_vision import Cohere2Vision
from tops_engine.families.internvl import tile_grid


class AyaVision(Cohere2Vision):
    """``AyaVisionForConditionalGeneration``: CohereLabs/aya-vision-8b and -32b.

    The tokens that number the tiles are text and are not pruned.
    """

    model_types = ("aya_vision",)
    checkpoints: ClassVar[dict[str, tuple[str, ...]]] = {
        "aya_vision": ("CohereLabs/aya-vision-8b", "CohereLabs/aya-vision-32b")
    }

    @classmethod
    def load_processor(cls, source: str, revision: str | None) -> Any:
        return AyaVisionProcessor.from_pretrained(source, revision=revision, trust_remote_code=False)

    def pixel_counts(self) -> list[int]:
        # A picture is scaled to its grid of tiles, whatever its own size.
        processor = self.processor.image_processor
        tile = int(processor.size["height"] * processor.size["width"])
        return [count * tile for count in range(1, processor.max_patches + 1)]

    def tile_grid(self, height: int, width: int) -> tuple[int, int]:
        processor = self.processor.image_processor
        return tile_grid(height, width, processor.size, processor.min_patches, processor.max_patches)

    @property
    def projector(self) -> nn.Module:
        return self.model.model.multi_modal_projector.layernorm

    def gated(self, rows: Tensor) -> Tensor:
        return self.model.model.multi_modal_projector.linear_1(self.projector(rows))

    @property
    def placeholders(self) -> set[str]:
        processor = self.processor
        marks = {processor.image_token, processor.start_of_img_token, processor.end_of_img_token}
        return marks | {processor.img_patch_token, processor.img_line_break_token}
