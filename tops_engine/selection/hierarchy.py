"""Selection by the attention of several layers of a vision tower."""

from torch import Tensor

from tops_engine.selection.merging import top_tokens


def anchor_select(middle: Tensor, deep: Tensor, boxes: Tensor, num_keep: int, num_anchors: int) -> Tensor:
    """Select anchors, their neighbours, and the most attended of the other tokens (HiPrune, arXiv 2508.00553).

    Anchors have the most attention in a middle layer. Their neighbours above, below, left and right follow, then the
    tokens with the most attention in a deep layer. If there are more neighbours than places, those with the most
    attention in the deep layer are kept. Ties go to the lowest index. The host does not wait for an accelerator.

    Parameters
    ----------
    middle, deep : float [N], the attention that each token receives in the two layers.
    boxes : float [N, 4], left, top, right and bottom of each token; tokens are of about the same size.
    num_keep : 1 to N.
    num_anchors : 0 to ``num_keep``.

    Returns
    -------
    int64 [num_keep], anchors first, each group by the attention in the deep layer.
    """
    anchors = top_tokens(middle, num_anchors)
    group = (adjacent(boxes)[anchors]).any(dim=0).long()
    group[anchors] = 2
    by_attention = top_tokens(deep, len(deep))
    return by_attention[group[by_attention].argsort(descending=True, stable=True)][:num_keep]


def adjacent(boxes: Tensor) -> Tensor:
    """Return which boxes of a grid share a side: [N, 4] -> bool [N, N]."""
    centers, sizes = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]).amax(dim=0)
    # In units of a box: 1 for a shared side, 2 for a shared corner.
    distance = ((centers[:, None] - centers).abs() / sizes).sum(dim=-1)
    return (distance > 0.5) & (distance < 1.5)
