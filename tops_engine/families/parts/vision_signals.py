"""Signals of stage I, read beside the running vision tower; attention without ever building the full matrix."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

# Rows of the attention matrix computed at a time when the tower has no [CLS].
QUERY_CHUNK = 64


@dataclass
class Call:
    """What a module got and made when it ran last: its first positional argument, its keywords and its output."""

    input: Tensor
    output: Tensor
    keywords: dict[str, Any] = field(default_factory=dict)


@contextmanager
def captured_calls(*modules: nn.Module) -> Iterator[list[Call]]:
    """Collect what these modules get and make while the block runs; the list is filled when they have run.

    The hooks sit on projections, so that the tower keeps its fused attention. They are removed on the way out.
    """
    calls = [Call(torch.empty(0), torch.empty(0)) for _ in modules]

    def keep(call: Call) -> Callable[[nn.Module, tuple[Tensor, ...], dict[str, Any], Tensor], None]:
        def hook(_module: nn.Module, inputs: tuple[Tensor, ...], keywords: dict[str, Any], output: Tensor) -> None:
            call.input, call.keywords, call.output = inputs[0], keywords, output

        return hook

    handles = [
        module.register_forward_hook(keep(call), with_kwargs=True) for module, call in zip(modules, calls, strict=True)
    ]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def patch_attention(queries: Tensor, keys: Tensor, num_heads: int, scale: float, has_cls: bool) -> Tensor:
    """How much attention each patch gets, mean over heads.

    Parameters
    ----------
    queries, keys : [tiles, tokens, width], before they are split into heads; token 0 is [CLS] if ``has_cls``.

    Returns
    -------
    float32 [tiles, patches]. With [CLS]: the attention of its row. Without: mean attention received from all patches.
    """
    queries, keys = (
        projected.view(*projected.shape[:2], num_heads, -1).transpose(1, 2).float() for projected in (queries, keys)
    )
    if has_cls:
        return _rows(queries[:, :, :1], keys, scale)[:, :, 0, 1:].mean(dim=1)
    received = torch.zeros(keys.shape[0], keys.shape[2], device=keys.device)
    for chunk in torch.split(queries, QUERY_CHUNK, dim=2):
        received += _rows(chunk, keys, scale).sum(dim=2).mean(dim=1)
    return received / queries.shape[2]


def _rows(queries: Tensor, keys: Tensor, scale: float) -> Tensor:
    return (queries @ keys.transpose(-1, -2) * scale).softmax(dim=-1)
