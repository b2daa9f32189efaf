"""Pairwise similarity of tokens, shared by the selection methods."""

import torch
from torch import Tensor

# The rounding error of a similarity, or of a score made from similarities.
ROUNDING = {torch.float32: 5e-7, torch.float64: 1e-12}


def cosine_similarity(features: Tensor) -> Tensor:
    """Return the cosine similarity of all pairs of tokens.

    The similarity with a zero vector is 0. Finite features never give NaN, however large or small they are.

    Parameters
    ----------
    features : [B, N, d], any floating dtype, finite.

    Returns
    -------
    [B, N, N] in [-1, 1]; float64 for float64 features, float32 for all others.
    """
    if features.dtype in (torch.bfloat16, torch.float16):
        return _similarity_of_halves(features)
    features = features.to(torch.float64 if features.dtype == torch.float64 else torch.float32)
    largest = features.abs().amax(dim=-1, keepdim=True)
    # With the largest component at 1 the norm cannot overflow, and only a zero vector has a norm below 1.
    features = features / largest.masked_fill(largest == 0, 1)
    features = features / torch.linalg.vector_norm(features, dim=-1, keepdim=True).clamp_min(1)
    return (features @ features.mT).clamp_(-1, 1)


def _similarity_of_halves(features: Tensor) -> Tensor:
    """Compute :func:`cosine_similarity` of bfloat16 or float16 features without converting them, on faster GPU units.

    The product of two halves is exact in float32, and the lengths are divided out afterwards, so no precision is lost.
    """
    largest = features.abs().amax(dim=-1, keepdim=True).float()
    # Scaling by a power of two is exact; with the largest component between 1/2 and 1 no product over- or underflows.
    exponent = torch.frexp(largest).exponent.clamp_min(-126).float()
    features = (features.float() * torch.exp2(-exponent)).to(features.dtype)
    if features.is_cuda:
        similarity = torch.bmm(features, features.mT, out_dtype=torch.float32)
    else:
        similarity = features.float() @ features.float().mT
    length = similarity.diagonal(dim1=1, dim2=2).sqrt().clamp_min(0.5)  # only a zero vector is shorter
    return similarity.div_(length[:, :, None]).div_(length[:, None, :]).clamp_(-1, 1)
