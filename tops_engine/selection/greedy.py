"""Greedy selection of tokens by relevance, diversity and coverage (TOPS, arXiv 2606.27161, algorithms 1 and 2).

With U the tokens not selected yet, S those selected and sim the cosine similarity, the next token is the i in U with
the largest ``r~_i + alpha d~_i + lambda c~_i``, where

- r_i, the relevance, is given,
- d_i = 1 - max_{k in S} sim(i, k) is the diversity,
- c_i = sum_{j in U} max(0, sim(i, j) - max_{k in S} sim(j, k)) is the coverage,

and ~ brings each to one scale over U. Where the paper leaves a choice open, both functions follow these rules:

- Nothing selected: the first token is the most relevant one. Without relevance it is the one with the best score when
  the similarity to the empty set is 0: the largest c_i = sum_{j} max(0, sim(i, j)), or without coverage the first.
- Scale: ``mean`` divides by the mean of the absolute values, which is the mean itself unless relevance is negative,
  where dividing by a negative mean would reverse the order. ``minmax`` is (x - min) / (max - min).
- A criterion that is 0 for every token (``mean``) or equal for every token (``minmax``) adds 0.
- Ties go to the lowest index. Scores that differ by less than the rounding error (``ROUNDING``) tie, and a diversity or
  coverage below the rounding error is 0.
"""

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from math import inf

import numpy as np
import torch
from torch import Tensor

from tops_engine.device.transfer import numbers_on
from tops_engine.selection.batch import Batch, checked_batch
from tops_engine.selection.coverage import coverage_gain, first_argmax
from tops_engine.selection.cpu import Array, select_on_cpu
from tops_engine.selection.cpu_batch import groups_of, select_together
from tops_engine.selection.objective import Normalization, Objective
from tops_engine.selection.similarity import ROUNDING, cosine_similarity

# The most tokens of one image that the kernel's registers hold.
KERNEL_TOKENS = 8192
# Whether GPUs with thread block clusters use the kernel in CUDA C++. It has not run on a GPU yet; `python -m
# benchmarks.gpu smoke` compares both kernels.
CLUSTER_KERNEL = False


@torch.no_grad()
def greedy_select_reference(
    features: Tensor,
    relevance: Tensor | None,
    num_keep: int,
    *,
    diversity_weight: float = 0.5,
    coverage_weight: float = 0.5,
    use_relevance: bool = True,
    normalization: Normalization = "mean",
) -> list[int]:
    """Select tokens of one image by the algorithm as the paper states it, in float64 with O(N^2) work a step.

    Tests compare :func:`greedy_select`, which documents the parameters, with this function.

    Parameters
    ----------
    features : [N, d], any floating dtype.
    relevance : [N], or None without relevance.
    num_keep : K, from 1 to N.

    Returns
    -------
    K indices in the order of selection.

    Raises
    ------
    InvalidInput
        As :func:`greedy_select`.
    """
    objective = Objective(diversity_weight, coverage_weight, use_relevance, normalization)
    steps = _PlainSteps(features, relevance, num_keep, objective)
    while len(steps.selected) < num_keep:
        rounding = ROUNDING[torch.float64] if steps.selected or steps.relevance is None else 0.0
        steps.take(int(first_argmax(steps.scores(), rounding)))
    return steps.selected


@torch.no_grad()
def selection_shortfall(
    features: Tensor,
    relevance: Tensor | None,
    order: Sequence[int],
    *,
    diversity_weight: float = 0.5,
    coverage_weight: float = 0.5,
    use_relevance: bool = True,
    normalization: Normalization = "mean",
) -> float:
    """Return how far a selection is from the best choice at any of its steps, by the scores of the plain algorithm.

    0 is the algorithm's own selection. A selection in lower precision differs from it where the scores of two tokens
    are closer than rounding errors; its shortfall is of the size of these errors.

    Parameters
    ----------
    order : the tokens in the order in which they were selected; see :func:`greedy_select` for the others.

    Returns
    -------
    The largest difference between the best score and that of the selected token, as a fraction of the best score.
    """
    objective = Objective(diversity_weight, coverage_weight, use_relevance, normalization)
    steps = _PlainSteps(features, relevance, len(order), objective)
    largest = 0.0
    for token in order:
        scores = steps.scores()
        best = float(scores.max())
        largest = max(largest, (best - float(scores[token])) / max(abs(best), ROUNDING[torch.float64]))
        steps.take(token)
    return largest


class _PlainSteps:
    """The steps of the algorithm as the paper states it, in float64, for one image."""

    def __init__(self, features: Tensor, relevance: Tensor | None, num_keep: int, objective: Objective) -> None:
        relevance = objective.relevance(relevance)
        rows = relevance[None] if relevance is not None else None
        batch = checked_batch(features.double()[None], rows, num_keep, None)
        self.relevance = batch.relevance[0] if batch.relevance is not None else None
        self.selected: list[int] = []
        self._objective = objective
        self._similarity = cosine_similarity(batch.features)[0]
        self._taken = batch.taken()[0]

    def scores(self) -> Tensor:
        """Return the score of each token, float64 [N]; -inf for those that are taken."""
        if self.relevance is not None and not self.selected:
            return self.relevance.masked_fill(self._taken, -inf)
        similarity = self._similarity
        closest = similarity[:, self.selected].amax(dim=1) if self.selected else torch.zeros_like(similarity[0])
        coverage = None
        if self._objective.coverage_weight:
            coverage = (similarity - closest)[:, ~self._taken].relu().sum(dim=1)
        return self._objective.score(self.relevance, closest, coverage, self._taken)

    def take(self, token: int) -> None:
        self.selected.append(token)
        self._taken[token] = True


@torch.no_grad()
def greedy_select(
    features: Tensor,
    relevance: Tensor | None,
    num_keep: int | Sequence[int],
    *,
    valid: Tensor | None = None,
    diversity_weight: float = 0.5,
    coverage_weight: float = 0.5,
    use_relevance: bool = True,
    normalization: Normalization = "mean",
) -> Tensor:
    """Select the same tokens as the paper's algorithm, in its order.

    Computes in float64 for float64 features and in float32 for all others. On an accelerator the host does not wait
    for results and every shape is known in advance, except for the check of the values, which
    :func:`tops_engine.device.checks.deferred_checks` defers. On the CPU coverage is updated instead of recomputed.

    Parameters
    ----------
    features : [B, N, d], any floating dtype; tokens are compared by their cosine similarity.
    relevance : [B, N], any floating dtype, negative values allowed; ignored, and may be None, without relevance.
    num_keep : K, the number of tokens to select, for all samples or for each.
    valid : bool [B, N], False at padding, whose values are ignored; None without padding.
    diversity_weight, coverage_weight : alpha and lambda of the paper; 0 switches the criterion off.
    use_relevance : whether relevance is a criterion.
    normalization : ``mean`` (the paper's algorithms) or ``minmax`` (its text).

    Returns
    -------
    int64 [B, max(K)], each row in the order of selection, then -1 for samples with fewer.

    Raises
    ------
    InvalidInput
        If shapes or dtypes do not match, values are NaN or infinite, K is below 1 or above the number of valid tokens,
        or weights are negative or leave no criterion.
    """
    objective = Objective(diversity_weight, coverage_weight, use_relevance, normalization)
    batch = checked_batch(features, objective.relevance(relevance), num_keep, valid)
    return _form_for(batch.features)(batch, objective)


def _select_on_cpu(batch: Batch, objective: Objective) -> Tensor:
    """Select without padding, for small images of equal size at once and for others one by one."""
    features, relevance = batch.features, batch.relevance
    tokens = [torch.arange(features.shape[1])] * len(features)
    if batch.valid is not None:
        tokens = [valid.nonzero().flatten() for valid in batch.valid]
    selected = torch.full((len(features), max(batch.num_keep)), -1)
    for samples in groups_of([len(own) for own in tokens]):
        own = tokens if batch.valid is not None else None
        similarity = cosine_similarity(_gathered(features, samples, own))
        weights = None if relevance is None else _gathered(relevance, samples, own).double().numpy()
        num_keep = max(batch.num_keep[sample] for sample in samples)
        orders = _orders_on_cpu(similarity, weights, num_keep, objective)
        for sample, order in zip(samples, torch.from_numpy(orders), strict=True):
            count = batch.num_keep[sample]
            selected[sample, :count] = tokens[sample][order[:count]]
    return selected


def _gathered(values: Tensor, samples: Sequence[int], tokens: Sequence[Tensor] | None) -> Tensor:
    """Return the values of some tokens of some samples: [B, N, ...] -> [samples, n, ...]; all tokens if None."""
    rows = [values[sample] if tokens is None else values[sample, tokens[sample]] for sample in samples]
    return rows[0][None] if len(rows) == 1 else torch.stack(rows)


def _orders_on_cpu(similarity: Tensor, relevance: Array | None, num_keep: int, objective: Objective) -> Array:
    """Select the same number of tokens of each sample: [B, n, n] -> int64 [B, num_keep]."""
    rounding = ROUNDING[similarity.dtype]
    if len(similarity) > 1:
        return select_together(similarity.numpy(), relevance, num_keep, objective, rounding)
    weights = None if relevance is None else relevance[0]
    return np.array([select_on_cpu(similarity[0].numpy(), weights, num_keep, objective, rounding)])


def _select_on_device(batch: Batch, objective: Objective) -> Tensor:
    """Select for all images at once. Nothing waits for the device and every shape is known in advance."""
    similarity = cosine_similarity(batch.features)
    rounding = ROUNDING[similarity.dtype]
    taken = batch.taken()

    best, closest = _first(similarity, batch, objective, taken)
    order = [best]
    while len(order) < max(batch.num_keep):
        # Recomputed in each step: this reads as much memory as an update, and rounding errors do not accumulate.
        coverage = coverage_gain(similarity, closest) if objective.coverage_weight else None
        best = first_argmax(objective.score(batch.relevance, closest, coverage, taken), rounding)
        order.append(best)
        taken.scatter_(1, best, True)
        closest = torch.maximum(closest, _rows(similarity, best)).masked_fill_(taken, inf)

    return _cut(torch.cat(order, dim=1), batch.num_keep)


def _select_in_kernel(batch: Batch, objective: Objective) -> Tensor:
    """Select for all images in one kernel launch; a step of :func:`_select_on_device` takes two dozen launches."""
    similarity = cosine_similarity(batch.features)
    taken = batch.taken()
    best, closest = _first(similarity, batch, objective, taken)
    order = best.repeat(1, max(batch.num_keep))
    coverage = coverage_gain(similarity, closest, torch.float64) if objective.coverage_weight else None
    weights = objective.diversity_weight, objective.coverage_weight
    minmax = objective.normalization == "minmax"
    rounding = ROUNDING[similarity.dtype]
    finish = _kernel_for(similarity.device)
    finish(order, similarity, batch.relevance, closest, coverage, taken, weights, rounding, minmax)
    return _cut(order, batch.num_keep)


def _kernel_for(device: torch.device) -> Callable[..., None]:
    from tops_engine.selection import greedy_cluster, greedy_kernel

    if CLUSTER_KERNEL and greedy_cluster.runs_on(device):
        return greedy_cluster.finish_selection
    return greedy_kernel.finish_selection


def _cut(order: Tensor, num_keep: Sequence[int]) -> Tensor:
    """Replace the entries beyond each sample's K by -1: [B, max(K)]."""
    if len(set(num_keep)) == 1:
        return order
    counts = numbers_on(order.device, num_keep)[:, None]
    return order.masked_fill(torch.arange(order.shape[1], device=order.device) >= counts, -1)


def _first(similarity: Tensor, batch: Batch, objective: Objective, taken: Tensor) -> tuple[Tensor, Tensor]:
    """Select the first token and mark it as ``taken``.

    Returns
    -------
    The token, int64 [B, 1], and each token's similarity to it, [B, N]; infinite for tokens that are taken, which no
    other token can gain by covering.
    """
    closest = torch.zeros_like(similarity[:, 0]).masked_fill_(taken, inf)
    if batch.relevance is not None:
        best = first_argmax(batch.relevance.masked_fill(taken, -inf))
    else:
        coverage = coverage_gain(similarity, closest) if objective.coverage_weight else None
        best = first_argmax(objective.score(None, closest, coverage, taken), ROUNDING[similarity.dtype])
    taken.scatter_(1, best, True)
    return best, _rows(similarity, best).masked_fill(taken, inf)


def _form_for(features: Tensor) -> Callable[[Batch, Objective], Tensor]:
    # The CPU form updates coverage, which is far less work, but its shapes depend on data: on an accelerator the host
    # would wait at every step.
    if features.device.type == "cpu":
        return _select_on_cpu
    fits = features.dtype != torch.float64 and features.shape[1] <= KERNEL_TOKENS
    if features.device.type == "cuda" and fits and find_spec("triton") is not None:
        return _select_in_kernel
    return _select_on_device


def _rows(similarity: Tensor, index: Tensor) -> Tensor:
    """Return row ``index[b]`` of each matrix: similarity [B, N, N], index int64 [B, 1] -> [B, N]."""
    return similarity.gather(1, index[:, :, None].expand(-1, -1, similarity.shape[2])).squeeze(1)
