"""Record what modules compute while a vision tower runs, and compute attention without the full matrix."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

# Entries of attention matrices that are computed at a time. On a CPU they fit into the cache of a core, so that softmax
# and sum read them from there; on a GPU they are enough to be worth a launch.
CPU_BLOCK = 2**18
DEVICE_BLOCK = 2**24


@dataclass
class Call:
    """The last call of a module: its arguments, the first positional one if it had one as ``input``, and its output."""

    input: Tensor
    output: Tensor
    keywords: dict[str, Any] = field(default_factory=dict)
    arguments: tuple[Any, ...] = ()


#: The run whose calls of a module count as one; None where each call is one.
_run_in_parts: ContextVar[object | None] = ContextVar("run in parts", default=None)


@contextmanager
def calls_in_parts() -> Iterator[None]:
    """Let all calls of a module in the block count as one call, whose input and output are joined along dimension 0."""
    before = _run_in_parts.set(object())
    try:
        yield
    finally:
        _run_in_parts.reset(before)


@contextmanager
def captured_calls(*modules: nn.Module) -> Iterator[list[Call]]:
    """Record the calls of modules while the block runs.

    The hooks sit on projections and whole layers, so the tower keeps its fused attention. They are removed when the
    block ends, also after an error.

    Yields
    ------
    One :class:`Call` for each module. It is empty until the module has run.
    """
    calls = [Call(torch.empty(0), torch.empty(0)) for _ in modules]

    def keep(call: Call) -> Callable[[nn.Module, tuple[Tensor, ...], dict[str, Any], Tensor], None]:
        last_run: object | None = None

        def hook(_module: nn.Module, inputs: tuple[Tensor, ...], keywords: dict[str, Any], output: Tensor) -> None:
            nonlocal last_run
            run = _run_in_parts.get()
            joins, last_run = run is not None and run is last_run, run
            if inputs:
                call.input = torch.cat([call.input, inputs[0]]) if joins else inputs[0]
            call.arguments, call.keywords = inputs, keywords
            call.output = torch.cat([call.output, output]) if joins else output

        return hook

    handles = [
        module.register_forward_hook(keep(call), with_kwargs=True) for module, call in zip(modules, calls, strict=True)
    ]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def tile_numbers(rows: Tensor) -> Tensor:
    """Number tiles from 1 and repeat each number for its rows: [tiles, rows, c] -> int64 [tiles, rows]."""
    return torch.arange(1, len(rows) + 1, device=rows.device)[:, None].expand(-1, rows.shape[1])


def patch_attention(queries: Tensor, keys: Tensor, num_heads: int, scale: float, has_cls: bool) -> Tensor:
    """Return how much attention each patch receives, as the mean over heads.

    Parameters
    ----------
    queries, keys : [tiles, tokens, width], before they are split into heads. Token 0 is [CLS] if ``has_cls``.
    num_heads : number of heads that ``width`` is split into.
    scale : factor of the query-key products before the softmax.
    has_cls : whether token 0 of each tile is [CLS].

    Returns
    -------
    float32 [tiles, patches]. With [CLS], the attention that [CLS] pays each patch. Without it, the mean attention that
    each patch receives from all patches of its tile.
    """
    queries, keys = _heads(queries, num_heads), _heads(keys, num_heads)
    if has_cls:
        return _rows(queries[:, :, :1], keys, scale)[:, :, 0, 1:].mean(dim=1)
    return _received(queries, keys, scale)


def received_attention(queries: Tensor, keys: Tensor, num_heads: int, scale: float, has_cls: bool) -> Tensor:
    """Return the mean attention that each patch receives from all tokens of its tile, [CLS] included.

    Without [CLS] it equals :func:`patch_attention`, whose parameters and result it has.
    """
    return _received(_heads(queries, num_heads), _heads(keys, num_heads), scale)[:, int(has_cls) :]


def _heads(projected: Tensor, num_heads: int) -> Tensor:
    """Split into heads: [tiles, tokens, width] -> float32 [tiles, heads, tokens, head_dim]."""
    return projected.view(*projected.shape[:2], num_heads, -1).transpose(1, 2).float()


def _received(queries: Tensor, keys: Tensor, scale: float) -> Tensor:
    """Return the attention that each token receives: [tiles, heads, n, head_dim] -> float32 [tiles, n]."""
    num_tiles, num_heads, num_tokens, _ = queries.shape
    num_rows = max(1, (CPU_BLOCK if keys.device.type == "cpu" else DEVICE_BLOCK) // num_tokens)
    num_matrices = max(1, num_rows // num_tokens)
    sums = []
    matrices = (torch.split(values.flatten(0, 1), num_matrices) for values in (queries, keys))
    for some_queries, some_keys in zip(*matrices, strict=True):
        total = some_keys.new_zeros(some_keys.shape[:2])
        for rows in torch.split(some_queries, num_rows, dim=1):
            total += _rows(rows, some_keys, scale).sum(dim=1)
        sums.append(total)
    return torch.cat(sums).view(num_tiles, num_heads, num_tokens).mean(dim=1) / num_tokens


def _rows(queries: Tensor, keys: Tensor, scale: float) -> Tensor:
    return (queries * scale @ keys.mT).softmax(dim=-1)
