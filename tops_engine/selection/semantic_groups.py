"""Groups of tokens by principal components, and the tokens of each group that do not repeat each other."""

import itertools
import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tops_engine.selection.similarity import cosine_similarity

Array = npt.NDArray[np.float64]


@torch.no_grad()
def grouped_select(features: Tensor, attention: Tensor, num_keep: int, num_patches: int) -> Tensor:
    """Select tokens of all semantic groups that are attended and differ from each other (PruneSID, arXiv 2603.09480).

    Each token belongs to the principal component with its largest loading. Within a group, a token whose similarity to
    a more attended one exceeds a threshold is redundant; the threshold is the mean similarity of all tokens times
    ``num_keep / 32``. Groups get places in proportion to the tokens that are not redundant, and fill them with these
    first and then with the most attended of the others.

    Parameters
    ----------
    features : [N, d], any floating dtype.
    attention : float [N], not negative.
    num_keep : the budget, which sets the number of groups and the threshold.
    num_patches : how many of the N tokens to select, 0 to N.

    Returns
    -------
    int64 [num_patches], group by group.
    """
    groups = principal_groups(features, max(1, num_keep // 4)).tolist()
    similarity = cosine_similarity(features[None])[0]
    above = similarity.triu(diagonal=1)
    threshold = num_keep / 32 * float(above.sum()) / max(1, len(features) * (len(features) - 1) // 2)
    members = [[token for token, own in enumerate(groups) if own == group] for group in range(max(groups) + 1)]
    scores, rows = attention.double().cpu().numpy(), similarity.double().cpu().numpy()
    ranked = [_without_redundancy(tokens, scores, rows, threshold) for tokens in members]
    places = _places([len(tokens) for tokens in members], [kept for _, kept in ranked], num_keep, num_patches)
    chosen = [token for (tokens, _), count in zip(ranked, places, strict=True) for token in tokens[:count]]
    return torch.tensor(chosen, dtype=torch.int64, device=features.device)


def principal_groups(features: Tensor, num_groups: int) -> Tensor:
    """Return the principal component with the largest loading of each token, by magnitude: [N, d] -> int64 [N].

    The components are those of the sigmoids of the features, centered over the features of each token.
    """
    values = torch.sigmoid(features.float()).double()
    values = values - values.mean(dim=1, keepdim=True)
    _, vectors = torch.linalg.eigh(values @ values.mT)
    return vectors.flip(1)[:, :num_groups].abs().argmax(dim=1)


def _without_redundancy(tokens: list[int], scores: Array, similarity: Array, threshold: float) -> tuple[list[int], int]:
    """Return the tokens of a group, those that are not redundant first, and how many these are."""
    left = sorted(tokens, key=lambda token: (-scores[token], token))
    kept: list[int] = []
    open_tokens = [token for token in left if scores[token] > 0]
    while open_tokens:
        kept.append(open_tokens[0])
        open_tokens = [token for token in open_tokens[1:] if similarity[kept[-1], token] <= threshold]
    return kept + [token for token in left if token not in kept], len(kept)


def _places(sizes: list[int], distinct: list[int], num_keep: int, total: int) -> list[int]:
    """Return the places of each group: ``total`` in all, one for each group with tokens while there are enough."""
    least = [min(1, size) for size in sizes]
    most = [min(5 * math.ceil(num_keep / 64), size, kept) for size, kept in zip(sizes, distinct, strict=True)]
    while sum(most) < min(num_keep, sum(sizes)):
        most = [min(bound + 1, size) for bound, size in zip(most, sizes, strict=True)]
    spare = max(0, total - sum(least))
    ends = [0, *(round(spare * part) for part in np.cumsum(distinct) / max(1, sum(distinct)))]
    wanted = [end - start + one for (start, end), one in zip(itertools.pairwise(ends), least, strict=True)]
    places = [min(want, bound) for want, bound in zip(wanted, most, strict=True)]
    by_variety = sorted(range(len(sizes)), key=lambda group: -distinct[group])
    for group in by_variety:
        places[group] += max(0, min(most[group] - places[group], total - sum(places)))
    for group in by_variety:
        places[group] += min(sizes[group] - places[group], max(0, total - sum(places)))
    for group in reversed(by_variety):
        places[group] -= min(places[group], max(0, sum(places) - total))
    return places
