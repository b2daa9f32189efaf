"""Groups of similar tokens around anchors that represent many tokens and differ from each other."""

from typing import NamedTuple

import torch
from torch import Tensor

from tops_engine.selection.coverage import first_argmax
from tops_engine.selection.merging import top_tokens


class Groups(NamedTuple):
    """Groups of tokens.

    Attributes
    ----------
    places : int64 [g], ascending: the token in the middle of each group, in the order of the tokens; of two the first.
    features : float [g, d], the mean of each group.
    sizes : float32 [g], the tokens of each group.
    """

    places: Tensor
    features: Tensor
    sizes: Tensor


def distinctive_groups(features: Tensor, num_groups: int) -> Groups:
    """Group tokens around distinctive anchors (RESTORE, arXiv 2606.01711).

    The density of a token is the sum of its cosine similarities with all tokens. Anchors have the largest product of
    density and distance from the most similar token of lower density, as in the official code. Every other token joins
    the most similar anchor.

    Parameters
    ----------
    features : float [n, d].
    num_groups : 0 to n.
    """
    values = features.float()
    unit = torch.nn.functional.normalize(values, dim=-1)
    similarity = unit @ unit.mT
    density = similarity.sum(dim=-1)
    lower = density[None, :] < density[:, None]
    nearest = similarity.masked_fill(~lower, -1.0).amax(dim=-1)
    nearest = torch.where(nearest == -1.0, 0.0, nearest)
    anchors = top_tokens(density * (1 - nearest), num_groups).sort().values
    joins = first_argmax(similarity[:, anchors])[:, 0].index_copy(
        0, anchors, torch.arange(num_groups, device=anchors.device)
    )
    member = joins == torch.arange(num_groups, device=joins.device)[:, None]
    sizes = member.sum(dim=1)
    # The rank of each token in its group says which one is in the middle.
    middle = member & (member.cumsum(dim=1) - 1 == ((sizes - 1) // 2)[:, None])
    places, order = middle.long().argmax(dim=1).sort()
    means = (member.float() @ values) / sizes[:, None]
    return Groups(places, means[order].to(features.dtype), sizes[order].float())
