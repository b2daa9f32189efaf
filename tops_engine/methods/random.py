"""Random choice: the control every method has to beat."""

from collections.abc import Sequence

from pydantic import Field

from tops_engine.device.lazy import torch
from tops_engine.methods.base import Method, Selection, VisualTokens


class Random(Method):
    """Keeps a uniformly random subset of each image, drawn once before the language model."""

    name = "random"
    source = "baseline of arXiv 2502.11501"
    waits_for_device = True

    # Not `seed`: that is the one of sampling, and surfaces show both side by side.
    selection_seed: int = Field(default=0, ge=0, description="The same seed keeps the same tokens.")

    def select_visual(self, images: Sequence[VisualTokens], counts: Sequence[int]) -> list[Selection]:
        # A generator an image, on the CPU: the choice depends on neither the batch nor the device.
        selections = []
        for image, count in zip(images, counts, strict=True):
            generator = torch.Generator().manual_seed(self.selection_seed)
            order = torch.randperm(image.layout.num_tokens, generator=generator)[:count].to(image.features.device)
            selections.append(Selection.in_order(order))
        return selections
