"""Greedy selection by a determinantal point process: tokens that are relevant and differ from each other."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from tops_engine.selection.coverage import first_argmax
from tops_engine.selection.cpu import best_of
from tops_engine.selection.similarity import ROUNDING, cosine_similarity

# A token counts as a linear combination of the selected ones if they leave less than this share of its squared length
# unexplained; the rest is rounding error.
UNEXPLAINED = {torch.float32: 1e-5, torch.float64: 1e-11}


@torch.no_grad()
def dpp_select(features: Tensor, relevance: Tensor, num_keep: int) -> Tensor:
    """Select tokens whose kernel matrix ``r_i sim(i, j) r_j`` has a large determinant (CDPruner, arXiv 2506.10967).

    Each step takes the token that makes the determinant largest. The factor it contributes is r_i ** 2 times the part
    of token i that the selected tokens do not explain; one row of an incremental Cholesky factorisation updates it, in
    O(N K) a step. When every token left is a linear combination of the selected ones, the most relevant tokens follow.
    Ties go to the lowest index. The host does not wait for an accelerator.

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


@torch.no_grad()
def kernel_dpp_select(kernel: Tensor, num_keep: int) -> Tensor:
    """Select tokens whose rows and columns of a kernel have a large determinant.

    Parameters
    ----------
    kernel : float [N, N], symmetric and positive definite.
    num_keep : 1 to N.

    Returns
    -------
    int64 [num_keep], in the order of selection; see :func:`dpp_select`.
    """
    scale = kernel.diagonal().sqrt()
    similarity = kernel / scale[:, None] / scale
    order = _form_for(kernel.device)(similarity, scale / scale.amax(), num_keep)
    return torch.as_tensor(order, device=kernel.device)


def _select_on_cpu(similarity: Tensor, relevance: Tensor, num_keep: int) -> list[int]:
    least, rounding = UNEXPLAINED[similarity.dtype], ROUNDING[similarity.dtype]
    rows, weight = similarity.numpy(), relevance.numpy()
    # The unexplained part of each token's squared unit length; 0 for a zero vector.
    unexplained = (rows.diagonal() > 0.5).astype(rows.dtype)
    barred = np.zeros_like(unexplained)  # -inf where a token is selected
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
    # The unexplained part of each token's squared unit length; 0 for a zero vector.
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
        # Indexed by one token in a tensor; by a number the host would wait for it.
        row = similarity[best].squeeze(0) - factor[:step].mT @ factor[:step, best].squeeze(1)
        factor[step] = torch.where(length > 0, row / length.clamp_min(least).sqrt(), 0)
        unexplained = unexplained - factor[step].square()
        unexplained = unexplained.masked_fill(unexplained < least, 0)
    return torch.cat(order)


def _form_for(device: torch.device) -> Callable[[Tensor, Tensor, int], Tensor | list[int]]:
    # A step is so little work that on the CPU the cost of torch's calls would dominate.
    return _select_on_cpu if device.type == "cpu" else _select_on_device
