"""SCOPE (arXiv 2510.24214): coverage weighted by saliency, before the language model."""

from collections.abc import Sequence

from pydantic import Field

from tops_engine import selection
from tops_engine.methods.base import Method, Selection
from tops_engine.methods.tokens import VisualTokens


class SCOPE(Method):
    """Keep tokens whose vision features cover those of the others, weighted by the attention of [CLS].

    The whole picture shares one budget; the official code gives each tile of LLaVA-NeXT an equal part.
    """

    name = "scope"
    source = "arXiv 2510.24214"
    signals = ("encoder_features", "vision_attention")

    saliency_exponent: float = Field(default=1.0, ge=0, le=10, description="Exponent of saliency; 0 is coverage alone.")

    def select_visual(self, images: Sequence[VisualTokens], counts: Sequence[int]) -> list[Selection]:
        selections = []
        for image, count in zip(images, counts, strict=True):
            order = selection.saliency_coverage_select(
                image.encoder_features(), image.vision_attention(), count, self.saliency_exponent
            )
            selections.append(Selection.in_order(order))
        return selections

    def selection_flops(self, num_tokens: int, num_kept: int, feature_size: int) -> int:
        # The similarity of all pairs (of vision features, about as wide); then each step compares one of its rows.
        return 2 * num_tokens * num_tokens * feature_size + num_kept * num_tokens
