"""The most probable subset of a determinantal point process: tokens that are relevant and unlike each other."""

import torch
from torch import Tensor

from tops_engine.selection.coverage import first_argmax
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
    relevance = relevance.to(similarity.dtype)
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
