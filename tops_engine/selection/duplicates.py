"""Remove duplicates: drop the tokens that resemble another one most, a few at a time."""

import torch
from torch import Tensor

from tops_engine.selection.similarity import cosine_similarity

# Tokens that a step removes at most, as in the source.
STEP = 8


@torch.no_grad()
def distinct_tokens(features: Tensor, num_keep: int) -> Tensor:
    """Remove tokens that resemble another one until ``num_keep`` are left (VisPruner, arXiv 2412.01818).

    Each step divides the tokens that are left into those at even and those at odd places. It removes the 8 even tokens
    with the most similar odd token, or fewer if that is enough. The other even tokens follow in the order of falling
    similarity, then the odd tokens, and the next step divides this list. The host does not wait for an accelerator.

    Parameters
    ----------
    features : [N, d], any floating dtype; compared by cosine similarity. Their order matters.
    num_keep : 0 to N.

    Returns
    -------
    int64 [num_keep], in the order in which the last step left them.
    """
    left = torch.arange(len(features), device=features.device)
    if num_keep in (0, len(left)):
        return left[:num_keep]
    similarity = cosine_similarity(features[None])[0]
    while len(left) > num_keep:
        even, odd = left[::2], left[1::2]
        # There is an odd token, since more than one is left.
        order = similarity[even[:, None], odd].amax(dim=1).argsort(descending=True, stable=True)
        num_removed = min(STEP, len(left) - num_keep, len(even))
        left = torch.cat([even[order[num_removed:]], odd])
    return left
