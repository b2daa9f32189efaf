"""Coverage (the gain of facility location), choosing the best token, and SCOPE's selection."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from tops_engine.selection.cpu import Covered, best_of
from tops_engine.selection.similarity import ROUNDING, cosine_similarity


def coverage_gain(similarity: Tensor, closest: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Compute c by its definition, summed in ``dtype``.

    similarity [B, N, N], closest [B, N] (infinite for tokens outside U) -> [B, N].
    """
    return (similarity - closest[:, None, :]).relu_().sum(dim=-1, dtype=dtype)


def first_argmax(score: Tensor, rounding: float = 0.0) -> Tensor:
    """Return the lowest index among the maxima of the last dimension, which is kept with size 1; int64.

    torch.argmax does not specify which of several maxima it returns.
    """
    best = score.amax(dim=-1, keepdim=True)
    tokens = torch.arange(score.shape[-1], device=score.device)
    is_best = score >= best - rounding * best.abs().clamp_min(1) if rounding else score == best
    # With NaN scores there is no maximum; an index beyond the end would crash the process, so return the last token.
    return tokens.masked_fill(~is_best, score.shape[-1] - 1).amin(dim=-1, keepdim=True)


@torch.no_grad()
def saliency_coverage_select(features: Tensor, saliency: Tensor, num_keep: int, exponent: float) -> Tensor:
    """Select tokens that cover the others and are salient (SCOPE, arXiv 2510.24214).

    Each step takes the token with the largest ``gain * saliency ** exponent``. The gain is how much the token adds to
    the sum, over all tokens, of the similarity to the closest selected token, which is 0 at first, so that negative
    cosines do not count. Ties go to the lowest index.

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
    # Only the order matters; with weights of at most 1 the scores can be compared with the rounding error.
    weight = (saliency / saliency.amax().clamp_min(torch.finfo(saliency.dtype).tiny)).to(similarity.dtype) ** exponent
    order = _form_for(similarity.device)(similarity[0], weight, num_keep)
    return torch.as_tensor(order, device=features.device)


@torch.no_grad()
def max_coverage_select(coverage: Tensor, num_keep: int) -> Tensor:
    """Select tokens that together cover a number of things well (MMTok, arXiv 2508.18264).

    Each step takes the token that adds most to the sum, over all things, of how well the best selected token covers
    the thing. Ties go to the lowest index. The host does not wait for an accelerator.

    Parameters
    ----------
    coverage : float [M, N], how well each of N tokens covers each of M things; not negative.
    num_keep : 1 to N.

    Returns
    -------
    int64 [num_keep], in the order of selection.
    """
    best = torch.zeros_like(coverage[:, :1])
    taken = torch.zeros_like(coverage[0], dtype=torch.bool)
    order = []
    for _ in range(num_keep):
        gain = (coverage - best).relu_().sum(dim=0)
        order.append(first_argmax(gain.masked_fill(taken, -torch.inf)))
        taken = taken.scatter(0, order[-1], True)
        best = torch.maximum(best, coverage[:, order[-1]])
    return torch.cat(order)


def _select_on_cpu(similarity: Tensor, weight: Tensor, num_keep: int) -> list[int]:
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
    return _select_on_cpu if device.type == "cpu" else _select_on_device
