"""The most probable subset of a determinantal point process: tokens that are relevant and unlike each other."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from tops_engine.selection.coverage import first_argmax
from tops_engine.selection.host import best_of
from tops_engine.selection.similarity import ROUNDING, cosine_similarity

# A token of which the chosen ones leave less than this share of its squared length unexplained counts as a mixture of
# them: what is left of it is rounding.
UNEXPLAINED = {torch.float32: 1e-5, torch.float64: 1e-11}


@torch.no_grad()
def dpp_select(features: Tensor, relevance: Tensor, num_keep: int) -> Tensor:
    """Choose tokens whose kernel matrix ``r_i sim(i, j) r_j`` has a large determinant (CDPruner, arXiv 2506.10967).

    Greedily: each step takes the token that makes the determinant of the chosen ones largest. That factor is r_i ** 2
    times what the chosen tokens do not explain of token i, which one row of an incremental Cholesky factorisation
    keeps up to date: O(N K) a step. When every token left is a mixture of the chosen ones, the most relevant follow.
    Ties go to the lowest index. Nothing waits for an accelerator.

    Parameters
    ----------
    features : [N, d], any floating dtype; compared by cosine similarity.
    relevance : [N], above 0.
    num_keep : 1 to N.

    Returns
    -------
    int64 [num_keep], in the order of selection.
    """
    similarity = cosine_similarity(features[None])[0]
    order = _form_for(features.device)(similarity, relevance.to(similarity.dtype), num_keep)
    return torch.as_tensor(order, device=features.device)


def _select_on_host(similarity: Tensor, relevance: Tensor, num_keep: int) -> list[int]:
    least, rounding = UNEXPLAINED[similarity.dtype], ROUNDING[similarity.dtype]
    rows, weight = similarity.numpy(), relevance.numpy()
    # Of every token's unit length squared; 0 for a zero vector.
    unexplained = (rows.diagonal() > 0.5).astype(rows.dtype)
    barred = np.zeros_like(unexplained)  # -inf where a token is chosen
    factor = np.zeros((num_keep, len(rows)), rows.dtype)
    order: list[int] = []
    for step in range(num_keep):
        gain = weight**2 * unexplained
        gain[order] = 0
        largest = gain.max()
        best = best_of((gain / largest if largest > 0 else weight) + barred, rounding)
        order.append(best)
        barred[best] = -np.inf
        if unexplained[best] > 0:
            row = rows[best] - factor[:step, best] @ factor[:step]
            factor[step] = row / np.sqrt(max(unexplained[best], least))
            unexplained -= factor[step] ** 2
            unexplained[unexplained < least] = 0
    return order


def _select_on_device(similarity: Tensor, relevance: Tensor, num_keep: int) -> Tensor:
    least, rounding = UNEXPLAINED[similarity.dtype], ROUNDING[similarity.dtype]
    # Of every token's unit length squared; 0 for a zero vector.
    unexplained = (similarity.diagonal() > 0.5).to(similarity.dtype)
    taken = torch.zeros_like(unexplained, dtype=torch.bool)
    factor = similarity.new_zeros(num_keep, len(similarity))
    order = []
    for step in range(num_keep):
        gain = (relevance.square() * unexplained).masked_fill(taken, 0)
        largest = gain.amax()
        score = torch.where(largest > 0, gain / largest, relevance)
        best = first_argmax(score.masked_fill(taken, -torch.inf), rounding)
        order.append(best)
        taken.scatter_(0, best, True)
        length = unexplained[best]
        row = similarity[best[0]] - factor[:step].mT @ factor[:step, best[0]]
        factor[step] = torch.where(length > 0, row / length.clamp_min(least).sqrt(), 0)
        unexplained = unexplained - factor[step].square()
        unexplained = unexplained.masked_fill(unexplained < least, 0)
    return torch.cat(order)


def _form_for(device: torch.device) -> Callable[[Tensor, Tensor, int], Tensor | list[int]]:
    # A step is so little work that on the CPU the calls of torch would be most of it.
    return _select_on_host if device.type == "cpu" else _select_on_device
