"""MiniCPM-V 4.7: MiniCPM-V 4.6 with positions in 3-D, in which a picture and its slices share one area."""

from typing import Any, ClassVar

import torch
from torch import Tensor

from tops_engine.families.minicpmv4_6 import MiniCPMV46
from tops_engine.grounding.formats import MINICPM, Format


class MiniCPMV47(MiniCPMV46):
    """``MiniCPMV4_7ForConditionalGeneration``: openbmb/MiniCPM-V-4.7-1B.

    Kept tokens keep their 3-D positions, so a slice stays where it lies in the picture.
    """

    model_types = ("minicpmv4_7",)
    checkpoints: ClassVar[dict[str, tuple[str, ...]]] = {"minicpmv4_7": ("openbmb/MiniCPM-V-4.7-1B",)}
    grounding: ClassVar[dict[str, Format]] = {"minicpmv4_7": MINICPM}
    position_axes = 3

    @classmethod
    def load_processor(cls, source: str, revision: str | None) -> Any:
        processor = super().load_processor(source, revision)
        # What a token shows, which the positions depend on.
        processor.return_mm_token_type_ids = True
        return processor

    def position_ids(self, input_ids: Tensor, pixels: dict[str, Tensor]) -> Tensor:
        sizes = {name: value for name, value in pixels.items() if name.startswith("target_sizes")}
        if not sizes:
            return super().position_ids(input_ids, pixels)
        config = self.model.config
        kinds = (input_ids == config.image_token_id).long() + 2 * (input_ids == config.video_token_id).long()
        pixels["mm_token_type_ids"] = kinds[None]
        positions, _ = self.model.model.get_rope_index(input_ids[None], kinds[None], **sizes)
        return torch.as_tensor(positions[:, 0])
