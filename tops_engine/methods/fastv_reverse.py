"""ReverseFastV, a control (arXiv 2502.11501): the tokens that FastV drops."""

from typing import Literal

from pydantic import Field

from tops_engine.device.lazy import Tensor
from tops_engine.methods.base import Selection
from tops_engine.methods.fastv import FastV
from tops_engine.methods.tokens import LayerTokens


class FastVReverse(FastV):
    """Keep the tokens that FastV would drop first, as a control of its score.

    The score carries little information if this is hardly worse than FastV. The paper has no public code and gives no
    formula of this variant. Keeping the lowest scores is our reading. The other reading, ``places``, gives each token
    the score of its mirror image in the order of the tokens: it keeps the preference of the score for places and
    removes its content.
    """

    name = "fastv_reverse"
    source = "arXiv 2502.11501 (no formula published; our reading)"

    reverse: Literal["scores", "places"] = Field(
        default="scores", description="Keep the lowest scores, or assign the scores to the tokens in reverse order."
    )

    def choose(self, attention: Tensor, image: LayerTokens, count: int) -> Selection:
        return Selection.highest(-attention if self.reverse == "scores" else attention.flip(0), count)
