"""Selection spread evenly over the windows of a grid."""

import torch
from torch import Tensor

from tops_engine.selection.merging import top_tokens


def window_select(scores: Tensor, boxes: Tensor, num_keep: int, side: int) -> Tensor:
    """Select the highest scores of each window of a grid, about the same number of each (VScan, arXiv 2505.22654).

    A window gives at most ``num_keep`` divided by the number of windows, rounded up. What the windows cannot fill goes
    to the highest scores that are left. Ties go to the lowest index.

    Parameters
    ----------
    scores : float [N].
    boxes : float [N, 4], left, top, right and bottom of each token; tokens are of about the same size.
    num_keep : 0 to N.
    side : of a window, in tokens. The last window in a row or column also has the tokens that are left over.

    Returns
    -------
    int64 [num_keep], by descending score in two groups: within the bound of a window, and beyond it.
    """
    corners = boxes[:, :2]
    size = (boxes[:, 2:] - corners).amax(dim=0)
    place = ((corners - corners.amin(dim=0)) / size).round().long()
    across = ((place.amax(dim=0) + 1) // side).clamp_min(1)
    column, row = torch.minimum(place // side, across - 1).unbind(dim=1)
    window = row * across[0] + column
    by_score = top_tokens(scores, len(scores))
    same = window[by_score, None] == window[by_score]
    rank_in_window = same.tril(-1).sum(dim=1)
    bound = -(-num_keep // across.prod())
    return by_score[(rank_in_window >= bound).long().argsort(stable=True)][:num_keep]
