"""How well tokens fit those around them."""

import torch
from torch import Tensor

#: Weight of place beside features.
PLACE_WEIGHT = 0.5


def local_affinity(features: Tensor, boxes: Tensor) -> Tensor:
    """Return the affinity of each token to the 3 x 3 tokens around it, at most 0 (VisionTrim, arXiv 2601.22674).

    It is minus the squared distance of features, divided by the variance of all features, and half of the same of
    places; the mean over nine places, of which those outside the picture count 0.

    Parameters
    ----------
    features : float [n, c].
    boxes : float [n, 4], left, top, right and bottom of each token; tokens are of about the same size.

    Returns
    -------
    float32 [n]
    """
    values, corners = features.float(), boxes[:, :2]
    size = (boxes[:, 2:] - corners).amax(dim=0)
    places = ((corners - corners.amin(dim=0)) / size).round()
    around = (places[:, None] - places).abs().amax(dim=-1) <= 1
    least = torch.finfo(torch.float32).tiny
    apart = _squared_distances(values) / values.var().clamp_min(least)
    away = _squared_distances(places) / places.var().clamp_min(least)
    return -((apart + PLACE_WEIGHT * away) * around).sum(dim=1) / 9


def _squared_distances(values: Tensor) -> Tensor:
    return torch.cdist(values, values, compute_mode="donot_use_mm_for_euclid_dist").square()
