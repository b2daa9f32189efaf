"""Max-min diversity: the subset whose closest pair is as far apart as possible, chosen greedily."""

import torch
from torch import Tensor

from tops_engine.selection.coverage import first_argmax
from tops_engine.selection.similarity import cosine_similarity


@torch.no_grad()
def max_min_select(features: Tensor, num_keep: int) -> Tensor:
    """Choose tokens far from each other by cosine distance (DivPrune, arXiv 2503.02175).

    The first token is the one farthest from its nearest neighbour; each next one is farthest from all chosen. Ties go
    to the lowest index. Nothing waits for an accelerator.

    Parameters
    ----------
    features : [N, d], any floating dtype.
    num_keep : 1 to N.

    Returns
    -------
    int64 [num_keep], in the order of selection.
    """
    distance = 1 - cosine_similarity(features[None])[0]
    taken = torch.zeros(len(features), dtype=torch.bool, device=features.device)
    nearest = distance.masked_fill(torch.eye(len(features), dtype=torch.bool, device=features.device), torch.inf)
    closest = nearest.amin(dim=1)
    order = []
    for _ in range(num_keep):
        best = first_argmax(closest.masked_fill(taken, -torch.inf))
        order.append(best)
        taken[best] = True
        row = distance[best].squeeze(0)
        closest = row if len(order) == 1 else torch.minimum(closest, row)
    return torch.cat(order)
