"""Pairwise similarity of tokens, shared by the selection methods."""

import torch
from torch import Tensor

# What a similarity, or a score made from similarities, may be off by.
ROUNDING = {torch.float32: 5e-7, torch.float64: 1e-12}


def cosine_similarity(features: Tensor) -> Tensor:
    """Cosine similarity of all pairs of tokens.

    The similarity with a zero vector is 0, so finite features never give NaN, however large or small they are.

    Parameters
    ----------
    features : [B, N, d], any floating dtype, finite.

    Returns
    -------
    [B, N, N] in [-1, 1]; float64 for float64 features, float32 for all others.
    """
    features = features.to(torch.float64 if features.dtype == torch.float64 else torch.float32)
    largest = features.abs().amax(dim=-1, keepdim=True)
    # With the largest component at 1 the norm cannot overflow, and only that of a zero vector is below 1.
    features = features / largest.masked_fill(largest == 0, 1)
    features = features / torch.linalg.vector_norm(features, dim=-1, keepdim=True).clamp_min(1)
    return (features @ features.mT).clamp_(-1, 1)
