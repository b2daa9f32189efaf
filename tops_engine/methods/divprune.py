"""DivPrune (arXiv 2503.02175): diversity alone, before the language model."""

from collections.abc import Sequence

from tops_engine import selection
from tops_engine.methods.base import Method, Selection
from tops_engine.methods.tokens import VisualTokens


class DivPrune(Method):
    """Keep the tokens of each image that are farthest from each other, by cosine distance of projected tokens."""

    name = "divprune"
    source = "arXiv 2503.02175"

    def select_visual(self, images: Sequence[VisualTokens], counts: Sequence[int]) -> list[Selection]:
        orders = [selection.max_min_select(image.features, count) for image, count in zip(images, counts, strict=True)]
        return [Selection.in_order(order) for order in orders]

    def selection_flops(self, num_tokens: int, num_kept: int, feature_size: int) -> int:
        # The similarity of all pairs; then each step compares one of its rows.
        return 2 * num_tokens * num_tokens * feature_size + num_kept * num_tokens
