"""FastV (arXiv 2403.06764): once, early inside the language model, by the attention of the last token."""

from collections.abc import Sequence

from pydantic import Field

from tops_engine.budget import Keep, Stage, stages_after
from tops_engine.methods.base import LayerTokens, Method, Selection


class FastV(Method):
    """Keeps the tokens that the last token of the prompt attends to most in the layer before.

    As in the official port with a cache: chosen once, original positions. The budget is a layer-average: the layers
    that see all tokens are paid for by keeping fewer afterwards.
    """

    name = "fastv"
    source = "arXiv 2403.06764"
    default_positions = "original"

    layer: int = Field(default=2, ge=1, description="Prune at the input of this decoder layer.")

    def plan(self, num_visual_tokens: int, num_layers: int, keep: Keep) -> tuple[Stage, ...]:
        return stages_after(keep, num_visual_tokens, num_layers, self.layer)

    def select_at_layer(self, images: Sequence[LayerTokens], counts: Sequence[int]) -> list[Selection]:
        selections = []
        for image, count in zip(images, counts, strict=True):
            attention = image.attention("last", layer="previous")[0]
            order = attention.argsort(descending=True, stable=True)[:count]
            selections.append(Selection(order.sort().values, order))
        return selections
