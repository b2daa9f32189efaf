"""HiPrune (arXiv 2508.00553): objects by a middle layer of the vision tower, the whole picture by a deep one."""

from pydantic import Field

from tops_engine import selection
from tops_engine.device.lazy import Tensor
from tops_engine.methods.per_tile import PerTile, TileChoice
from tops_engine.methods.tokens import VisualTokens


class HiPrune(PerTile):
    """Keep patches of objects by a middle vision layer, their neighbours, and the most attended in a deep layer.

    The first are called anchors, their four neighbours buffers, and the last registers. Attention is the mean that a
    patch receives from all patches and [CLS]. The middle layer is the 9th of CLIP's 24 and the 16th of Qwen2.5-VL's 32,
    as in the official code; the deep layer is the one that feeds the projector. A share of the budget goes to anchors
    and buffers, as if each anchor had four buffers of its own; registers take the places that are left.

    The official code finds neighbours by index, so that a patch at the end of a row is a neighbour of the first patch
    of the next row. Here neighbours share a side. Where they exceed a small budget, which stops the official code with
    an error, those with the most attention in the deep layer are kept.
    """

    name = "hiprune"
    source = "arXiv 2508.00553"
    waits_for_device = True
    signals = ("tiles", "received_attention", "middle_attention")

    anchors: float = Field(default=0.1, ge=0, le=1, description="Share of the budget for anchors and their neighbours.")

    def scores(self, image: VisualTokens) -> Tensor:
        return image.received_attention()

    def select_tile(self, image: VisualTokens, scores: Tensor, tokens: Tensor, num_keep: int) -> TileChoice:
        middle, boxes = image.middle_attention()[tokens], image.layout.boxes.to(tokens.device)[tokens]
        num_anchors = round(self.anchors * num_keep / 5)
        return TileChoice(
            tokens[selection.anchor_select(middle, scores[tokens], boxes, num_keep, num_anchors)], tokens[:0]
        )
