"""The relevance signal of stage I: attention inside the vision tower, without ever building the full matrix."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

# Rows of the attention matrix computed at a time when the tower has no [CLS].
QUERY_CHUNK = 64


@contextmanager
def captured_projections(attention: Any) -> Iterator[dict[str, Tensor]]:
    """Collect what an attention module's ``q_proj`` and ``k_proj`` produce while the block runs.

    The hooks sit on the projections, so the tower keeps its fused attention. They are removed on the way out.
    """
    captured: dict[str, Tensor] = {}
    handles = [
        getattr(attention, name).register_forward_hook(
            lambda _module, _inputs, output, name=name: captured.__setitem__(name, output)
        )
        for name in ("q_proj", "k_proj")
    ]
    try:
        yield captured
    finally:
        for handle in handles:
            handle.remove()


def patch_attention(captured: dict[str, Tensor], num_heads: int, scale: float, has_cls: bool) -> Tensor:
    """How much attention each patch gets, mean over heads.

    Parameters
    ----------
    captured : ``q_proj`` and ``k_proj``, each [tiles, tokens, width]; token 0 is [CLS] if ``has_cls``.

    Returns
    -------
    float32 [tiles, patches]. With [CLS]: the attention of its row. Without: mean attention received from all patches.
    """
    queries, keys = (
        captured[name].view(*captured[name].shape[:2], num_heads, -1).transpose(1, 2).float()
        for name in ("q_proj", "k_proj")
    )
    if has_cls:
        return _rows(queries[:, :, :1], keys, scale)[:, :, 0, 1:].mean(dim=1)
    received = torch.zeros(keys.shape[0], keys.shape[2], device=keys.device)
    for chunk in torch.split(queries, QUERY_CHUNK, dim=2):
        received += _rows(chunk, keys, scale).sum(dim=2).mean(dim=1)
    return received / queries.shape[2]


def _rows(queries: Tensor, keys: Tensor, scale: float) -> Tensor:
    return (queries @ keys.transpose(-1, -2) * scale).softmax(dim=-1)
