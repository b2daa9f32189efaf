"""Coverage, the gain of facility location, kept up to date while tokens are selected; and choosing the best token."""

from collections.abc import Callable

import torch
from torch import Tensor

from tops_engine.selection.similarity import ROUNDING, cosine_similarity


def coverage_gain(similarity: Tensor, closest: Tensor) -> Tensor:
    """c by its definition: similarity [B, N, N], closest [B, N] (infinite outside U) -> [B, N]."""
    # The sparse update subtracts from this sum until little of it is left; its rounding would then be all that counts.
    dtype = torch.float64 if similarity.device.type == "cpu" else similarity.dtype
    return (similarity - closest[:, None, :]).relu_().sum(dim=-1, dtype=dtype)


def _update_dense(similarity: Tensor, coverage: Tensor, previous: Tensor, closest: Tensor) -> Tensor:
    """c after a step, anew: reads as much as updating all of c would, has a fixed shape and cannot drift."""
    return coverage_gain(similarity, closest)


def _update_sparse(similarity: Tensor, coverage: Tensor, previous: Tensor, closest: Tensor) -> Tensor:
    """c after a step, by the few columns j whose closest selected token changed.

    Parameters
    ----------
    similarity : [B, N, N].
    coverage : float64 [B, N] before the step.
    previous, closest : [B, N] before and after the step.

    Returns
    -------
    float64 [B, N]
    """
    sample, token = (closest > previous).nonzero(as_tuple=True)
    columns = similarity[sample, token]  # rows, which are columns by symmetry and lie together in memory
    before, after = previous[sample, token, None], closest[sample, token, None]
    lost = columns.clamp(before, after) - before
    return coverage.index_add(0, sample, lost.double(), alpha=-1)


def coverage_update_for(device: torch.device) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    # The sparse update does far less work, but its shapes depend on data: a wait for the device at every step.
    return _update_sparse if device.type == "cpu" else _update_dense


def first_argmax(score: Tensor, rounding: float = 0.0) -> Tensor:
    """The lowest index among the maxima of the last dimension, kept as a dimension of size 1; int64.

    torch.argmax promises no particular one of several maxima.
    """
    best = score.amax(dim=-1, keepdim=True)
    tokens = torch.arange(score.shape[-1], device=score.device)
    is_best = score >= best - rounding * best.abs().clamp_min(1) if rounding else score == best
    return tokens.masked_fill(~is_best, score.shape[-1]).amin(dim=-1, keepdim=True)


@torch.no_grad()
def saliency_coverage_select(features: Tensor, saliency: Tensor, num_keep: int, exponent: float) -> Tensor:
    """Choose tokens that cover the others and are salient (SCOPE, arXiv 2510.24214).

    Each step takes the token with the largest ``gain * saliency ** exponent``, where the gain is how much it adds to
    the sum, over all tokens, of the similarity to the closest chosen one (0 at first: negative cosines never count).
    Ties go to the lowest index.

    Parameters
    ----------
    features : [N, d], any floating dtype.
    saliency : [N], not negative.
    num_keep : 1 to N.

    Returns
    -------
    int64 [num_keep], in the order of selection.
    """
    similarity = cosine_similarity(features[None])
    # Only the order counts; with weights up to 1 scores are comparable to rounding.
    weight = (saliency / saliency.amax().clamp_min(torch.finfo(saliency.dtype).tiny)).to(similarity.dtype) ** exponent
    update = coverage_update_for(similarity.device)
    closest = torch.zeros_like(similarity[:, 0])
    coverage = coverage_gain(similarity, closest)
    taken = torch.zeros_like(closest, dtype=torch.bool)
    order = []
    for _ in range(num_keep):
        best = first_argmax((coverage * weight).masked_fill(taken, -torch.inf), ROUNDING[similarity.dtype])
        order.append(best[0])
        taken.scatter_(1, best, True)
        previous, closest = closest, torch.maximum(closest, similarity[0, best[0]])
        coverage = update(similarity, coverage, previous, closest)
    return torch.cat(order)
