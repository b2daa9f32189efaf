"""Coverage, the gain of facility location; choosing the best token; and SCOPE, which does both."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from tops_engine.selection.host import Covered, best_of
from tops_engine.selection.similarity import ROUNDING, cosine_similarity


def coverage_gain(similarity: Tensor, closest: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """c by its definition: similarity [B, N, N], closest [B, N] (infinite outside U) -> [B, N], summed in ``dtype``."""
    return (similarity - closest[:, None, :]).relu_().sum(dim=-1, dtype=dtype)


def first_argmax(score: Tensor, rounding: float = 0.0) -> Tensor:
    """The lowest index among the maxima of the last dimension, kept as a dimension of size 1; int64.

    torch.argmax promises no particular one of several maxima.
    """
    best = score.amax(dim=-1, keepdim=True)
    tokens = torch.arange(score.shape[-1], device=score.device)
    is_best = score >= best - rounding * best.abs().clamp_min(1) if rounding else score == best
    # Not a number is no maximum: some token is named all the same, as an index beyond the end ends the whole process.
    return tokens.masked_fill(~is_best, score.shape[-1] - 1).amin(dim=-1, keepdim=True)


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
    order = _form_for(similarity.device)(similarity[0], weight, num_keep)
    return torch.as_tensor(order, device=features.device)


def _select_on_host(similarity: Tensor, weight: Tensor, num_keep: int) -> list[int]:
    covered = Covered(similarity.numpy(), np.zeros_like(weight.numpy()))
    barred = np.zeros(len(weight))
    order: list[int] = []
    for _ in range(num_keep):
        best = best_of(covered.gain * weight.numpy() + barred, ROUNDING[similarity.dtype])
        order.append(best)
        barred[best] = -np.inf
        covered.add(best)
    return order


def _select_on_device(similarity: Tensor, weight: Tensor, num_keep: int) -> Tensor:
    closest = torch.zeros_like(similarity[:1])
    taken = torch.zeros_like(closest, dtype=torch.bool)
    order = []
    for _ in range(num_keep):
        score = coverage_gain(similarity[None], closest) * weight
        best = first_argmax(score.masked_fill(taken, -torch.inf), ROUNDING[similarity.dtype])
        order.append(best[0])
        taken.scatter_(1, best, True)
        closest = torch.maximum(closest, similarity[best[0]])
    return torch.cat(order)


def _form_for(device: torch.device) -> Callable[[Tensor, Tensor, int], Tensor | list[int]]:
    return _select_on_host if device.type == "cpu" else _select_on_device
