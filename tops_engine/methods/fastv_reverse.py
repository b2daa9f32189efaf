"""ReverseFastV, a control (arXiv 2502.11501): FastV's score used the wrong way round."""

from typing import Literal

from pydantic import Field

from tops_engine.device.lazy import Tensor
from tops_engine.methods.base import LayerTokens, Selection
from tops_engine.methods.fastv import FastV


class FastVReverse(FastV):
    """Keeps the tokens that FastV would drop first.

    If that is hardly worse than FastV, the score says little. The paper has no public code and we know of no formula of
    this variant: keeping the lowest scores is our reading. The other, ``places``, gives each token the score of its
    mirror image in the order of tokens, which keeps the score's liking for places and takes its content away.
    """

    name = "fastv_reverse"
    source = "arXiv 2502.11501 (no formula published; our reading)"

    reverse: Literal["scores", "places"] = Field(
        default="scores", description="Keep the lowest scores, or reverse the order of the places they belong to."
    )

    def choose(self, attention: Tensor, image: LayerTokens, count: int) -> Selection:
        return Selection.highest(-attention if self.reverse == "scores" else attention.flip(0), count)
