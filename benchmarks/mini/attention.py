"""Attention for training on a CPU, where the fused kernel's backward pass is slow."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

PLAIN = "plain"


def plain_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float, **_: Any
) -> tuple[Tensor, None]:
    """Attend with two matrix products in the tensors' own type; query (b, heads, n, width); key
    and value may have fewer heads.
    """
    batch, heads, length, width = query.shape
    if key.shape[1] != heads:
        key, value = (t.repeat_interleave(heads // t.shape[1], dim=1) for t in (key, value))
    query, key, value = (t.reshape(batch * heads, -1, width) for t in (query, key, value))
    scores = torch.bmm(query * scaling, key.transpose(1, 2))
    if mask is not None:
        scores = (scores.view(batch, heads, length, -1) + mask).view(batch * heads, length, -1)
    shares = torch.softmax(scores, -1)
    return torch.bmm(shares.to(value.dtype), value).view(batch, heads, length, width).transpose(1, 2), None


AttentionInterface.register(PLAIN, plain_attention)
