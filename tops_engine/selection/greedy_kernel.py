"""The greedy loop as one Triton kernel, without waits for the host and without launches between the steps.

One program processes one image. A step reads the row of the token selected last and, for coverage, the rows of the
tokens whose closest selected token changed; the similarity matrix stays in the GPU's second-level cache. The speed is
estimated in benchmarks/NOTES.md; it is not measured yet.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

# Rows that update coverage at once. This and the number of warps are estimates; to measure them, run
# `python -m benchmarks.selection --tune`.
ROWS = 8


def num_warps(num_tokens: int) -> int:
    """Return the number of warps that share an image, so that each thread has few tokens to go through in a step."""
    return 4 if num_tokens <= 1024 else 16


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
    """Fill ``order`` from its second column on by continuing the greedy selection.

    Parameters
    ----------
    order : int64 [B, K]; its first column holds the first token of each image.
    similarity : float32 [B, N, N].
    relevance : float32 [B, N], or None without relevance.
    closest : float32 [B, N], the similarity to the first token; infinite for tokens that are taken. It is
        overwritten.
    coverage : float64 [B, N], the gains of the tokens that are not taken, or None without coverage.
    taken : bool [B, N], also True for padding.
    weights : the weights of diversity and coverage.
    rounding, minmax : as in :mod:`tops_engine.selection.greedy`.
    """
    num_images, num_tokens = closest.shape
    nothing = closest  # a placeholder that is not read
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
        num_warps=num_warps(num_tokens),
    )


@triton.jit
def _both(first, second, more_first, more_second):
    return first + more_first, second + more_second


@triton.jit
def _over_mean(values, total, count):
    mean = total / count
    return tl.where(mean > 0, values / tl.where(mean > 0, mean, 1.0), 0.0)


@triton.jit
def _over_span(values, left, noise):
    low = tl.min(tl.where(left, values, float("inf")), 0)
    span = tl.max(tl.where(left, values, float("-inf")), 0) - low
    return tl.where(span > noise, (values - low) / tl.where(span > noise, span, 1.0), 0.0)


# Otherwise the kernel would be compiled again for each divisibility of K.
@triton.jit(do_not_specialize=["num_keep"])
def _greedy_loop(
    order,
    similarity,
    relevance,
    closest,
    coverage,
    taken,
    changed,
    num_tokens,
    num_keep,
    diversity_weight,
    coverage_weight,
    rounding,
    HAS_RELEVANCE: tl.constexpr,  # noqa: N803
    HAS_DIVERSITY: tl.constexpr,  # noqa: N803
    HAS_COVERAGE: tl.constexpr,  # noqa: N803
    MINMAX: tl.constexpr,  # noqa: N803
    BLOCK: tl.constexpr,  # noqa: N803
    ROWS: tl.constexpr,  # noqa: N803
):
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
    # Each step subtracts from the gain; in float32 the rest would be mostly rounding error after many steps.
    gain = tl.load(coverage + token, mask=inside, other=0.0).to(tl.float64)
    # Number and total relevance of the tokens left; updating them is faster than summing in each step.
    num_left = tl.sum(left.to(tl.int32), 0)
    value_left = tl.sum(tl.where(left, tl.abs(value), 0.0).to(tl.float64), 0)
    for step in range(1, num_keep):
        # Differences up to the noise count as 0; otherwise rounding errors would be scaled up in the last steps.
        noise = rounding * num_tokens
        distance = tl.where(left & (1 - near > rounding), 1 - near, 0.0)
        gained = tl.where(left & (gain > noise), gain, 0.0).to(tl.float32)
        score = tl.zeros([BLOCK], tl.float32)
        if MINMAX:
            if HAS_RELEVANCE:
                score += _over_span(value, left, 0.0)
            if HAS_DIVERSITY:
                score += diversity_weight * _over_span(distance, left, rounding)
            if HAS_COVERAGE:
                score += coverage_weight * _over_span(gained, left, noise)
        else:
            tokens_left = tl.maximum(num_left, 1).to(tl.float32)
            distance_left, gain_left = tl.reduce((distance, gained), 0, _both)
            if HAS_RELEVANCE:
                score += _over_mean(value, value_left.to(tl.float32), tokens_left)
            if HAS_DIVERSITY:
                score += diversity_weight * _over_mean(distance, distance_left, tokens_left)
            if HAS_COVERAGE:
                score += coverage_weight * _over_mean(gained, gain_left, tokens_left)
        score = tl.where(left, score, float("-inf"))
        top = tl.max(score, 0)
        tied = score >= top - rounding * tl.maximum(tl.abs(top), 1.0)
        best = tl.minimum(tl.min(tl.where(tied, token, BLOCK - 1), 0), num_tokens - 1)
        tl.store(order + step, best.to(tl.int64))
        left = left & (token != best)
        num_left -= 1
        if HAS_RELEVANCE:
            value_left -= tl.abs(tl.load(relevance + best)).to(tl.float64)

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
