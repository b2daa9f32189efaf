"""Attention of a single new token, as the layers of transformers call it."""

from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface

from tops_engine.families.decoder import with_sinks

#: Its name in a config's ``_attn_implementation``.
ONE_TOKEN = "tops_one_token"


def attend(
    _module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    scaling: float,
    s_aux: Tensor | None = None,
    softcap: float | None = None,
    **_options: Any,
) -> tuple[Tensor, None]:
    """Compute softmax attention with plain operations, parallel over all slots; fused kernels are so over heads only.

    Heads that share keys are computed together, so that keys and values are not repeated for each of them.

    Parameters
    ----------
    query : [B, heads, 1, head_dim].
    key, value : [B, kv_heads, slots, head_dim].
    attention_mask : additive [B, 1, 1, slots].
    scaling : of the products.
    s_aux : [heads], the scores of heads that go to no token, of models that have such.
    softcap : bound of the scaled products, of models that have one.

    Returns
    -------
    [B, 1, heads, head_dim], and no weights.
    """
    batch, heads, one, head_dim = query.shape
    asking = query.view(batch, key.shape[1], -1, head_dim)
    precise = torch.promote_types(query.dtype, torch.float32)
    scores = (asking @ key.transpose(2, 3)).to(precise) * scaling
    if softcap is not None:
        scores = (scores / softcap).tanh() * softcap
    scores = scores + attention_mask
    if s_aux is not None:
        scores = with_sinks(scores.flatten(1, 2)[:, :, None], s_aux)[:, :, 0].view(*scores.shape[:3], -1)
    weights = scores.softmax(dim=-1)[..., : key.shape[2]].to(value.dtype)
    return (weights @ value).view(batch, one, heads, head_dim), None


AttentionInterface.register(ONE_TOKEN, attend)
