"""Max-min diversity: greedily select the subset whose closest pair is as far apart as possible."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from tops_engine.selection.coverage import first_argmax
from tops_engine.selection.similarity import cosine_similarity


@torch.no_grad()
def max_min_select(features: Tensor, num_keep: int, weights: Tensor | None = None) -> Tensor:
    """Select tokens that are far from each other by cosine distance (DivPrune, arXiv 2503.02175).

    The first token is the one farthest from its nearest neighbour; each next token is the one farthest from those
    selected. Ties go to the lowest index. The host does not wait for an accelerator.

    Parameters
    ----------
    features : [N, d], any floating dtype.
    num_keep : 1 to N.
    weights : float [N], not negative; the distances of a token from all others are multiplied by its weight (FlashVID,
        arXiv 2602.08024).

    Returns
    -------
    int64 [num_keep], in the order of selection.
    """
    distance = 1 - cosine_similarity(features[None])[0]
    if weights is not None:
        distance = distance * weights.to(distance.dtype)
    nearest = distance.masked_fill(torch.eye(len(features), dtype=torch.bool, device=features.device), torch.inf)
    order = _form_for(features.device)(distance, nearest.amin(dim=0), num_keep)
    return torch.as_tensor(order, device=features.device)


def _select_on_cpu(distance: Tensor, nearest: Tensor, num_keep: int) -> list[int]:
    rows, closest = distance.numpy(), nearest.numpy()
    order: list[int] = []
    for _ in range(num_keep):
        best = int(closest.argmax())  # the first of several maxima
        order.append(best)
        closest = np.minimum(rows[best], closest if len(order) > 1 else np.inf)
        closest[order] = -np.inf
    return order


def _select_on_device(distance: Tensor, nearest: Tensor, num_keep: int) -> Tensor:
    closest = nearest
    taken = torch.zeros_like(nearest, dtype=torch.bool)
    order = []
    for _ in range(num_keep):
        best = first_argmax(closest.masked_fill(taken, -torch.inf))
        order.append(best)
        taken[best] = True
        row = distance[best].squeeze(0)
        closest = row if len(order) == 1 else torch.minimum(closest, row)
    return torch.cat(order)


def _form_for(device: torch.device) -> Callable[[Tensor, Tensor, int], Tensor | list[int]]:
    # A step is so little work that on the CPU the cost of torch's calls would dominate.
    return _select_on_cpu if device.type == "cpu" else _select_on_device
