"""A pruning method in one file, as a contributor or a user writes it."""

from collections.abc import Sequence

import torch
from pydantic import Field

from tops_engine.methods import Method, Selection, VisualTokens


class FirstTokens(Method):
    """Keep the first tokens of each image, after those that are skipped."""

    name = "first_tokens"
    source = "a test"

    skip: int = Field(default=0, ge=0, description="Skip this many tokens.")

    def select_visual(self, images: Sequence[VisualTokens], counts: Sequence[int]) -> list[Selection]:
        selections = []
        for image, count in zip(images, counts, strict=True):
            first = min(self.skip, image.layout.num_tokens - count)
            selections.append(Selection(torch.arange(first, first + count)))
        return selections
