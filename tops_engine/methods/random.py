"""Random selection, the control that every method is compared with."""

from collections.abc import Sequence

from pydantic import Field

from tops_engine.device.lazy import torch
from tops_engine.device.seeds import seeded
from tops_engine.methods.base import Method, Selection
from tops_engine.methods.tokens import VisualTokens


class Random(Method):
    """Keep a uniformly random subset of each image, drawn once before the language model."""

    name = "random"
    source = "baseline of arXiv 2502.11501"
    waits_for_device = True

    # Not called `seed`: surfaces show it beside the seed of sampling.
    selection_seed: int = Field(
        default=0, ge=0, lt=2**64, description="Seed of the selection; the same seed keeps the same tokens."
    )

    def select_visual(self, images: Sequence[VisualTokens], counts: Sequence[int]) -> list[Selection]:
        # One generator for each image, on the CPU: the selection depends on neither the batch nor the device.
        selections = []
        for image, count in zip(images, counts, strict=True):
            generator = seeded(self.selection_seed)
            order = torch.randperm(image.layout.num_tokens, generator=generator)[:count].to(image.features.device)
            selections.append(Selection.in_order(order))
        return selections
