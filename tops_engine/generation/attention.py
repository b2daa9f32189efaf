"""Attention of a single new token, as the layers of transformers call it."""

from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface

#: Its name in a config's ``_attn_implementation``.
ONE_TOKEN = "tops_one_token"


def attend(
    _module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor, scaling: float, **_options: Any
) -> tuple[Tensor, None]:
    """Compute softmax attention with plain operations, parallel over all slots; fused kernels are so over heads only.

    Heads that share keys are computed together, so that keys and values are not repeated for each of them.

    Parameters
    ----------
    query : [B, heads, 1, head_dim].
    key, value : [B, kv_heads, slots, head_dim].
    attention_mask : additive [B, 1, 1, slots].
    scaling : of the products.

    Returns
    -------
    [B, 1, heads, head_dim], and no weights.
    """
    batch, heads, one, head_dim = query.shape
    asking = query.view(batch, key.shape[1], -1, head_dim)
    precise = torch.promote_types(query.dtype, torch.float32)
    scores = (asking @ key.transpose(2, 3)).to(precise) * scaling + attention_mask
    weights = scores.softmax(dim=-1).to(value.dtype)
    return (weights @ value).view(batch, one, heads, head_dim), None


AttentionInterface.register(ONE_TOKEN, attend)
