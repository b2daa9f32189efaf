"""The greedy loop as one Triton kernel: no step waits for the host, and none costs a launch.

One program works on one image. A step reads the row of the token chosen last and, for coverage, the rows of the tokens
that found a closer one; the similarity of all pairs stays in the GPU's second-level cache. Its speed is not measured
yet.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

# Rows that update coverage at once.
ROWS = 8


def finish_selection(
    order: Tensor,
    similarity: Tensor,
    relevance: Tensor | None,
    closest: Tensor,
    coverage: Tensor | None,
    taken: Tensor,
    weights: tuple[float, float],
    rounding: float,
    minmax: bool,
) -> None:
    """Fill ``order`` from its second column on.

    Parameters
    ----------
    order : int64 [B, K], the first column chosen.
    similarity : float32 [B, N, N].
    relevance : float32 [B, N] or None without it.
    closest : float32 [B, N], the similarity to the first token; infinite for what is taken. It is overwritten.
    coverage : float64 [B, N], of the tokens that are not taken; None without it.
    taken : bool [B, N], also True for padding.
    weights : of diversity and coverage.
    rounding, minmax : as in :mod:`tops_engine.selection.greedy`.
    """
    num_images, num_tokens = closest.shape
    nothing = closest  # never read where a criterion is off
    _greedy_loop[(num_images,)](
        order,
        similarity.contiguous(),
        nothing if relevance is None else relevance.contiguous(),
        closest,
        nothing if coverage is None else coverage.contiguous(),
        taken.to(torch.int8),
        torch.empty_like(closest, dtype=torch.int32),
        num_tokens,
        order.shape[1],
        *weights,
        rounding,
        HAS_RELEVANCE=relevance is not None,
        HAS_DIVERSITY=weights[0] > 0,
        HAS_COVERAGE=coverage is not None,
        MINMAX=minmax,
        BLOCK=triton.next_power_of_2(num_tokens),
        ROWS=ROWS,
        num_warps=4 if num_tokens <= 1024 else 16,
    )


@triton.jit
def _scaled(values: Any, left: Any, noise: Any, MINMAX: tl.constexpr) -> Any:  # noqa: N803
    """Values on one scale over the tokens left; differences up to ``noise`` count as none."""
    values = tl.where(left, values, 0.0)
    if MINMAX:
        low = tl.min(tl.where(left, values, float("inf")), 0)
        span = tl.max(tl.where(left, values, float("-inf")), 0) - low
        scaled = tl.where(span > noise, (values - low) / tl.where(span > noise, span, 1.0), 0.0)
    else:
        mean = tl.sum(tl.abs(values), 0) / tl.maximum(tl.sum(left.to(tl.int32), 0), 1)
        scaled = tl.where(mean > 0, values / tl.where(mean > 0, mean, 1.0), 0.0)
    return scaled


@triton.jit
def _greedy_loop(
    order: Any,
    similarity: Any,
    relevance: Any,
    closest: Any,
    coverage: Any,
    taken: Any,
    changed: Any,
    num_tokens: Any,
    num_keep: Any,
    diversity_weight: Any,
    coverage_weight: Any,
    rounding: Any,
    HAS_RELEVANCE: tl.constexpr,  # noqa: N803
    HAS_DIVERSITY: tl.constexpr,  # noqa: N803
    HAS_COVERAGE: tl.constexpr,  # noqa: N803
    MINMAX: tl.constexpr,  # noqa: N803
    BLOCK: tl.constexpr,  # noqa: N803
    ROWS: tl.constexpr,  # noqa: N803
) -> None:
    image = tl.program_id(0).to(tl.int64)
    order += image * num_keep
    similarity += image * num_tokens * num_tokens
    relevance += image * num_tokens
    closest += image * num_tokens
    coverage += image * num_tokens
    taken += image * num_tokens
    changed += image * num_tokens

    token = tl.arange(0, BLOCK)
    inside = token < num_tokens
    left = tl.load(taken + token, mask=inside, other=1) == 0
    near = tl.load(closest + token, mask=inside, other=float("inf"))
    value = tl.load(relevance + token, mask=inside, other=0.0)
    # Steps subtract from it until little is left; in float32 the rounding would then be all that counts.
    gain = tl.load(coverage + token, mask=inside, other=0.0).to(tl.float64)
    for step in range(1, num_keep):
        score = tl.zeros([BLOCK], tl.float32)
        if HAS_RELEVANCE:
            score += _scaled(value, left, 0.0, MINMAX)
        if HAS_DIVERSITY:
            distance = tl.where(1 - near > rounding, 1 - near, 0.0)
            score += diversity_weight * _scaled(distance, left, rounding, MINMAX)
        if HAS_COVERAGE:
            noise = rounding * num_tokens
            gained = tl.where(gain > noise, gain, 0.0).to(tl.float32)
            score += coverage_weight * _scaled(gained, left, noise, MINMAX)
        score = tl.where(left, score, float("-inf"))
        top = tl.max(score, 0)
        tied = score >= top - rounding * tl.maximum(tl.abs(top), 1.0)
        best = tl.min(tl.where(tied, token, BLOCK - 1), 0)
        tl.store(order + step, best.to(tl.int64))
        left = left & (token != best)

        row = similarity + best.to(tl.int64) * num_tokens
        after = tl.where(left, tl.maximum(near, tl.load(row + token, mask=inside, other=0.0)), float("inf"))
        if HAS_COVERAGE:
            found = after > near
            place = tl.cumsum(found.to(tl.int32), 0) - 1
            tl.store(changed + place, token, mask=found)
            tl.debug_barrier()
            count = tl.sum(found.to(tl.int32), 0)
            for start in range(0, count, ROWS):
                listed = start + tl.arange(0, ROWS)
                known = listed < count
                column = tl.load(changed + listed, mask=known, other=0)
                low = tl.load(closest + column, mask=known, other=0.0)[:, None]
                high = tl.where(column == best, float("inf"), tl.load(row + column, mask=known, other=0.0))[:, None]
                place_of = column.to(tl.int64)[:, None] * num_tokens + token[None, :]
                covered = tl.load(similarity + place_of, mask=known[:, None] & inside[None, :], other=0.0)
                lost = tl.minimum(tl.maximum(covered, low), high) - low
                gain -= tl.sum(tl.where(known[:, None], lost, 0.0).to(tl.float64), 0)
            tl.debug_barrier()
            tl.store(closest + token, after, mask=inside)
        near = after
