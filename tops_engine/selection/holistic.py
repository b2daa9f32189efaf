"""Division of a budget among crops of a picture, by attention and variety."""

import torch
from torch import Tensor

from tops_engine.selection.merging import top_tokens


@torch.no_grad()
def holistic_select(
    features: Tensor, attention: Tensor, num_keep: int, num_crops: int, variety_weight: float
) -> Tensor:
    """Select the most attended tokens of each crop, more of a crop with more attention and variety.

    HoloV, arXiv 2510.02912. A crop is a part of the sequence of tokens. Its weight is the mean of the attention plus
    the weighted variance of each token's cosine similarity with the crop, which is scaled to the same mean. Each crop
    gets its share of the budget, rounded down, and the crops with the largest weights one token more until the budget
    is met. What a crop cannot hold goes to the others, first to those with the largest weights.

    Parameters
    ----------
    features : [N, d], any floating dtype.
    attention : float [N], not negative.
    num_keep : 1 to N.

    Returns
    -------
    int64 [num_keep], crop by crop, each by falling attention.
    """
    crops = torch.arange(len(features), device=features.device).tensor_split(min(num_crops, len(features)))
    scores = torch.stack([_score(features[crop], attention[crop], variety_weight) for crop in crops]).double()
    shares = scores / scores.sum() if float(scores.sum()) > 0 else torch.full_like(scores, 1 / len(crops))
    by_weight = top_tokens(shares, len(crops)).tolist()
    counts = _counts(shares.tolist(), by_weight, [len(crop) for crop in crops], num_keep)
    return torch.cat([crop[top_tokens(attention[crop], count)] for crop, count in zip(crops, counts, strict=True)])


def _score(features: Tensor, attention: Tensor, variety_weight: float) -> Tensor:
    if len(features) == 1:
        return attention.mean()
    unit = torch.nn.functional.normalize(features.float(), dim=-1)
    # The diagonal counts as 0 in the variance too, as in the source.
    similarity = (unit @ unit.mT).fill_diagonal_(0)
    mean = similarity.sum(dim=1, keepdim=True) / (len(features) - 1)
    variance = (similarity - mean).square().sum(dim=1) / (len(features) - 1)
    mean_variance = variance.mean()
    scale = torch.where(mean_variance > 0, attention.mean() / mean_variance, 0)
    return (attention + variety_weight * scale * variance).mean()


def _counts(shares: list[float], by_weight: list[int], sizes: list[int], num_keep: int) -> list[int]:
    """Return the tokens of each crop; they sum to ``num_keep`` and do not exceed the sizes."""
    counts = [int(share * num_keep) for share in shares]
    for crop in by_weight[: num_keep - sum(counts)]:
        counts[crop] += 1
    counts = [min(count, size) for count, size in zip(counts, sizes, strict=True)]
    for crop in by_weight:
        counts[crop] += min(sizes[crop] - counts[crop], num_keep - sum(counts))
    return counts
