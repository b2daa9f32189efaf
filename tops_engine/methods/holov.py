"""HoloV (arXiv 2510.02912): the most attended patches of each crop of the picture."""

from collections.abc import Sequence

from pydantic import Field

from tops_engine import selection
from tops_engine.device.lazy import torch
from tops_engine.methods.base import Method, Selection
from tops_engine.methods.tokens import VisualTokens


class HoloV(Method):
    """Keep the most attended patches of each crop of the picture, more of crops with much attention and variety.

    A crop is a part of the sequence of patches, over all tiles. Attention is that of [CLS], and variety the variance of
    the similarity of projected tokens. Newline tokens are dropped. Where a crop gets more places than it has patches,
    the official code adds zero vectors; here the places go to other crops.
    """

    name = "holov"
    source = "arXiv 2510.02912"
    waits_for_device = True
    signals = ("tiles", "vision_attention")

    num_crops: int = Field(default=16, ge=1, description="Number of crops.")
    variety_weight: float = Field(default=0.09, ge=0, le=10, description="Weight of variety beside attention.")

    def select_visual(self, images: Sequence[VisualTokens], counts: Sequence[int]) -> list[Selection]:
        return [self._select(image, count) for image, count in zip(images, counts, strict=True)]

    def _select(self, image: VisualTokens, count: int) -> Selection:
        is_patch = image.tiles() > 0
        patches, rest = is_patch.nonzero().flatten(), (~is_patch).nonzero().flatten()
        num_patches = min(count, len(patches))
        chosen = selection.holistic_select(
            image.features[patches], image.vision_attention()[patches], num_patches, self.num_crops, self.variety_weight
        )
        return Selection.in_order(torch.cat([patches[chosen], rest[: count - num_patches]]))

    def selection_flops(self, num_tokens: int, num_kept: int, feature_size: int) -> int:
        # The similarity of all pairs within the crops.
        return 2 * num_tokens * num_tokens * feature_size // self.num_crops
