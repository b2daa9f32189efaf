"""OTPrune (arXiv 2602.20205): the tokens whose distribution is closest to that of all tokens."""

from collections.abc import Sequence

from pydantic import Field

from tops_engine import selection
from tops_engine.device.lazy import torch
from tops_engine.methods.base import Method, Selection
from tops_engine.methods.tokens import VisualTokens


class OTPrune(Method):
    """Keep the tokens whose distribution is closest to that of all tokens, by a bound of the optimal transport.

    The bound is the determinant of ``I + kernel_weight * G @ G`` over the kept tokens, with the products ``G`` of
    projected tokens, of which every feature is scaled to length 1 over all tokens, as in the official code. It is
    maximised greedily. The whole picture has one budget and newline tokens compete. The official code computes in half
    precision and fills up the budget where that ends early; here it is float32.
    """

    name = "otprune"
    source = "arXiv 2602.20205"

    kernel_weight: float = Field(
        default=0.01, gt=0, le=100, description="Weight of the products of tokens in the kernel."
    )

    def select_visual(self, images: Sequence[VisualTokens], counts: Sequence[int]) -> list[Selection]:
        selections = []
        for image, count in zip(images, counts, strict=True):
            unit = torch.nn.functional.normalize(image.features.float(), dim=0)
            products = unit @ unit.mT
            kernel = torch.eye(len(unit), device=unit.device) + self.kernel_weight * products @ products
            selections.append(Selection.in_order(selection.kernel_dpp_select(kernel, count)))
        return selections

    def selection_flops(self, num_tokens: int, num_kept: int, feature_size: int) -> int:
        # The products of all pairs and their square; then each step updates a row with all earlier rows.
        return 2 * num_tokens * num_tokens * (feature_size + num_tokens) + num_tokens * num_kept * num_kept
