"""Greedy selection of tokens by relevance, diversity and coverage (TOPS, arXiv 2606.27161, algorithms 1 and 2).

With U the tokens not selected yet, S those selected and sim the cosine similarity, the next token is the i in U with
the largest ``r~_i + alpha d~_i + lambda c~_i``, where

- r_i, the relevance, is given,
- d_i = 1 - max_{k in S} sim(i, k) is the diversity,
- c_i = sum_{j in U} max(0, sim(i, j) - max_{k in S} sim(j, k)) is the coverage,

and ~ brings each to one scale over U. What the paper leaves open is decided here, alike for both functions:

- Nothing selected: the first token is the most relevant one. Without relevance it is the one with the best score when
  the similarity to the empty set is 0: the largest c_i = sum_{j} max(0, sim(i, j)), or without coverage the first.
- Scale: ``mean`` divides by the mean of the absolute values, which is the mean itself unless relevance is negative,
  where dividing by a negative mean would reverse the order. ``minmax`` is (x - min) / (max - min).
- A criterion that is 0 for every token (``mean``) or the same for every token (``minmax``) adds 0.
- Ties go to the lowest index. Scores that differ by less than rounding (``ROUNDING``) tie, and a diversity or coverage
  that is less than rounding is 0.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from math import inf, isfinite
from operator import index
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from tops_engine.device.checks import check
from tops_engine.device.transfer import numbers_on
from tops_engine.errors import InvalidInput
from tops_engine.selection.coverage import coverage_gain, first_argmax
from tops_engine.selection.host import select_on_host
from tops_engine.selection.similarity import ROUNDING, cosine_similarity

Normalization = Literal["mean", "minmax"]

# More tokens of one image than the kernel's registers hold.
KERNEL_TOKENS = 8192


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
    """Select tokens by the algorithm as the paper writes it, in float64 and O(N^2) a step.

    The yardstick for :func:`greedy_select`, which explains the parameters; here for one image.

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
    relevance = objective.relevance(relevance)
    batch = _checked(features.double()[None], relevance[None] if relevance is not None else None, num_keep, None)
    relevance = batch.relevance[0] if batch.relevance is not None else None
    similarity = cosine_similarity(batch.features)[0]
    taken = batch.taken()[0]
    selected: list[int] = []
    while len(selected) < num_keep:
        if relevance is not None and not selected:
            best = first_argmax(relevance)
        else:
            closest = similarity[:, selected].amax(dim=1) if selected else torch.zeros_like(similarity[0])
            coverage = (similarity - closest)[:, ~taken].relu().sum(dim=1) if coverage_weight else None
            score = objective.score(relevance, closest, coverage, taken)
            best = first_argmax(score, ROUNDING[torch.float64])
        selected.append(int(best))
        taken[best] = True
    return selected


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
    """Select the tokens the paper's algorithm selects, in its order.

    Computes in float64 for float64 features and in float32 for all others. On an accelerator nothing waits and every
    shape is known in advance, the check of values aside, which
    :func:`tops_engine.device.checks.deferred_checks` puts off; on the CPU coverage is kept and only updated.

    Parameters
    ----------
    features : [B, N, d], any floating dtype: what tokens are compared by.
    relevance : [B, N], any floating dtype, negative values allowed; ignored, and may be None, without relevance.
    num_keep : K, how many tokens to select, for all samples or for each.
    valid : bool [B, N], False for padding, which may hold anything; None when there is none.
    diversity_weight, coverage_weight : alpha and lambda of the paper; 0 switches the criterion off.
    use_relevance : whether relevance takes part.
    normalization : ``mean`` (the paper's algorithms) or ``minmax`` (its text).

    Returns
    -------
    int64 [B, max(K)], each row in the order of selection, then -1 for samples with fewer.

    Raises
    ------
    InvalidInput
        For shapes and dtypes that do not fit, NaN or infinite values, K below 1 or above the number of valid tokens,
        and weights that are negative or leave no criterion.
    """
    objective = Objective(diversity_weight, coverage_weight, use_relevance, normalization)
    batch = _checked(features, objective.relevance(relevance), num_keep, valid)
    return _form_for(batch.features)(batch, objective)


def _select_on_host(batch: "_Batch", objective: "Objective") -> Tensor:
    """Image by image, its padding left out."""
    selected = torch.full((len(batch.features), max(batch.num_keep)), -1)
    for sample, num_keep in enumerate(batch.num_keep):
        features, tokens = batch.features[sample], None
        relevance = None if batch.relevance is None else batch.relevance[sample].double()
        if batch.valid is not None:
            tokens = batch.valid[sample].nonzero().flatten()
            features, relevance = features[tokens], None if relevance is None else relevance[tokens]
        similarity = cosine_similarity(features[None])[0]
        weights = None if relevance is None else relevance.numpy()
        order = torch.tensor(
            select_on_host(similarity.numpy(), weights, num_keep, objective, ROUNDING[similarity.dtype])
        )
        selected[sample, :num_keep] = order if tokens is None else tokens[order]
    return selected


def _select_on_device(batch: "_Batch", objective: "Objective") -> Tensor:
    """All images at once. Nothing waits for the device and every shape is known in advance."""
    similarity = cosine_similarity(batch.features)
    rounding = ROUNDING[similarity.dtype]
    taken = batch.taken()

    best, closest = _first(similarity, batch, objective, taken)
    order = [best]
    while len(order) < max(batch.num_keep):
        # Anew in each step: that reads as much as updating all of it would, and cannot drift.
        coverage = coverage_gain(similarity, closest) if objective.coverage_weight else None
        best = first_argmax(objective.score(batch.relevance, closest, coverage, taken), rounding)
        order.append(best)
        taken.scatter_(1, best, True)
        closest = torch.maximum(closest, _rows(similarity, best)).masked_fill_(taken, inf)

    return _cut(torch.cat(order, dim=1), batch.num_keep)


def _select_in_kernel(batch: "_Batch", objective: "Objective") -> Tensor:
    """All images at once, in one launch: a step of :func:`_select_on_device` is two dozen."""
    from tops_engine.selection.greedy_kernel import finish_selection

    similarity = cosine_similarity(batch.features)
    taken = batch.taken()
    best, closest = _first(similarity, batch, objective, taken)
    order = best.repeat(1, max(batch.num_keep))
    coverage = coverage_gain(similarity, closest, torch.float64) if objective.coverage_weight else None
    weights = objective.diversity_weight, objective.coverage_weight
    minmax = objective.normalization == "minmax"
    rounding = ROUNDING[similarity.dtype]
    finish_selection(order, similarity, batch.relevance, closest, coverage, taken, weights, rounding, minmax)
    return _cut(order, batch.num_keep)


def _cut(order: Tensor, num_keep: Sequence[int]) -> Tensor:
    """-1 in the place of what goes beyond K of each sample: [B, max(K)]."""
    if len(set(num_keep)) == 1:
        return order
    counts = numbers_on(order.device, num_keep)[:, None]
    return order.masked_fill(torch.arange(order.shape[1], device=order.device) >= counts, -1)


def _first(similarity: Tensor, batch: "_Batch", objective: "Objective", taken: Tensor) -> tuple[Tensor, Tensor]:
    """The first token, int64 [B, 1], which is ``taken`` then, and each token's similarity to it, [B, N].

    That is infinite once nothing can be gained by covering a token.
    """
    closest = torch.zeros_like(similarity[:, 0]).masked_fill_(taken, inf)
    if batch.relevance is not None:
        best = first_argmax(batch.relevance.masked_fill(taken, -inf))
    else:
        coverage = coverage_gain(similarity, closest) if objective.coverage_weight else None
        best = first_argmax(objective.score(None, closest, coverage, taken), ROUNDING[similarity.dtype])
    taken.scatter_(1, best, True)
    return best, _rows(similarity, best).masked_fill(taken, inf)


def _form_for(features: Tensor) -> Callable[["_Batch", "Objective"], Tensor]:
    # Updating coverage by what changed is far less work, but its shapes depend on data: a wait at every step.
    if features.device.type == "cpu":
        return _select_on_host
    fits = features.dtype != torch.float64 and features.shape[1] <= KERNEL_TOKENS
    if features.device.type == "cuda" and fits and find_spec("triton") is not None:
        return _select_in_kernel
    return _select_on_device


def _rows(similarity: Tensor, index: Tensor) -> Tensor:
    """Row ``index[b]`` of each [N, N] matrix: similarity [B, N, N], index int64 [B, 1] -> [B, N]."""
    return similarity.gather(1, index[:, :, None].expand(-1, -1, similarity.shape[2])).squeeze(1)


@dataclass(frozen=True)
class Objective:
    """The score of algorithms 1 and 2; the fields are parameters of :func:`greedy_select`."""

    diversity_weight: float
    coverage_weight: float
    use_relevance: bool
    normalization: Normalization

    def __post_init__(self) -> None:
        for name in ("diversity_weight", "coverage_weight"):
            weight = getattr(self, name)
            if not (isfinite(weight) and weight >= 0):
                raise InvalidInput(f"{name} is {weight}; give a finite number of at least 0.")
        if not (self.use_relevance or self.diversity_weight or self.coverage_weight):
            raise InvalidInput("All criteria are off; use relevance or give diversity or coverage a weight above 0.")
        if self.normalization not in get_args(Normalization):
            raise InvalidInput(f"normalization is {self.normalization!r}; use 'mean' or 'minmax'.")

    def relevance(self, relevance: Tensor | None) -> Tensor | None:
        """The relevance to use, if any."""
        if self.use_relevance and relevance is None:
            raise InvalidInput("relevance is None; give one value a token, or use_relevance=False.")
        return relevance if self.use_relevance else None

    def score(self, relevance: Tensor | None, closest: Tensor, coverage: Tensor | None, taken: Tensor) -> Tensor:
        """Score the tokens of U, those not ``taken``; -inf for the others. All tensors are [..., N]."""
        rounding = ROUNDING[closest.dtype]
        score = torch.zeros_like(closest)
        if relevance is not None:
            score = score + self._normalize(relevance, taken, 0.0)
        if self.diversity_weight:
            score = score + self.diversity_weight * self._normalize(1 - closest, taken, rounding)
        if coverage is not None:
            noise = rounding * closest.shape[-1]
            score = score + self.coverage_weight * self._normalize(coverage, taken, noise)
        return score.masked_fill(taken, -inf)

    def _normalize(self, values: Tensor, taken: Tensor, noise: float) -> Tensor:
        """Bring values to one scale over U; differences up to ``noise`` count as none. All tensors are [..., N]."""
        if noise:
            # Otherwise rounding would be scaled up once nothing is left to gain.
            values = values.masked_fill(values <= noise, 0)
        if self.normalization == "minmax":
            lowest = values.masked_fill(taken, inf).amin(dim=-1, keepdim=True)
            span = values.masked_fill(taken, -inf).amax(dim=-1, keepdim=True) - lowest
            return ((values - lowest) / span).masked_fill(span <= noise, 0)
        total = values.abs().masked_fill(taken, 0).sum(dim=-1, keepdim=True)
        mean = total / (~taken).sum(dim=-1, keepdim=True)
        return (values / mean).masked_fill(mean == 0, 0)


class _Batch(NamedTuple):
    """The checked input of a selection.

    Attributes
    ----------
    features : [B, N, d], 0 where padded.
    relevance : float64 for float64 features, float32 for others [B, N], 0 where padded and at most 1 in size; None
        without relevance.
    valid : bool [B, N], None without padding.
    num_keep : of each sample.
    """

    features: Tensor
    relevance: Tensor | None
    valid: Tensor | None
    num_keep: list[int]

    def taken(self) -> Tensor:
        """What cannot be selected: bool [B, N]."""
        if self.valid is None:
            return torch.zeros(self.features.shape[:2], dtype=torch.bool, device=self.features.device)
        return ~self.valid


def _checked(features: Tensor, relevance: Tensor | None, num_keep: int | Sequence[int], valid: Tensor | None) -> _Batch:
    if features.ndim != 3 or 0 in features.shape or not features.is_floating_point():
        raise InvalidInput(
            f"features are {_kind(features)}; give floating-point tokens [samples, tokens, size], not empty."
        )
    shape = features.shape[:2]
    if relevance is not None and (relevance.shape != shape or not relevance.is_floating_point()):
        raise InvalidInput(f"relevance is {_kind(relevance)}; give one floating-point value a token, {list(shape)}.")
    if valid is not None and (valid.shape != shape or valid.dtype != torch.bool):
        raise InvalidInput(f"valid is {_kind(valid)}; give one torch.bool a token, {list(shape)}.")

    keep = _counts(num_keep, len(features))
    dtype = torch.float64 if features.dtype == torch.float64 else torch.float32
    relevance = relevance.to(dtype) if relevance is not None else None
    if valid is not None:
        features = features.masked_fill(~valid[:, :, None], 0)
        relevance = relevance.masked_fill(~valid, 0) if relevance is not None else None
    _check_values(features, relevance, keep, valid)
    if features.device.type != "cpu":
        # What is wrong may show only later: until then there must be numbers to go on with.
        features = features.nan_to_num(0, 0, 0)
        relevance = relevance.nan_to_num(0, 0, 0) if relevance is not None else None
    if relevance is not None:
        # Neither normalization depends on the scale; with values of at most 1 no sum can overflow.
        largest = relevance.abs().amax(dim=-1, keepdim=True)
        relevance = relevance / largest.masked_fill(largest == 0, 1)
    return _Batch(features, relevance, valid, keep)


def _counts(num_keep: int | Sequence[int], num_samples: int) -> list[int]:
    """K of each sample."""
    try:
        keep = [index(num) for num in (num_keep if isinstance(num_keep, Sequence) else [num_keep] * num_samples)]
    except TypeError:
        raise InvalidInput(f"num_keep is {num_keep!r}; give an integer, or one for each sample.") from None
    if len(keep) != num_samples:
        raise InvalidInput(f"num_keep has {len(keep)} entries for {num_samples} samples; give one for each.")
    return keep


def _check_values(features: Tensor, relevance: Tensor | None, keep: list[int], valid: Tensor | None) -> None:
    """Check what only the values show."""
    named = {"features": features} | ({"relevance": relevance} if relevance is not None else {})

    def verify(facts: list[int]) -> None:
        for (name, tensor), is_finite in zip(named.items(), facts, strict=False):
            if not is_finite:
                kind = tensor.dtype
                raise InvalidInput(f"There are NaN or infinite values in {name} (as {kind}); pass finite values only.")
        limits = facts[len(named) :] or [features.shape[1]] * len(features)
        for sample, (num, limit) in enumerate(zip(keep, limits, strict=True)):
            if not 1 <= num <= limit:
                raise InvalidInput(
                    f"num_keep is {num} for sample {sample}, which has {limit} tokens; keep 1 to {limit}."
                )

    facts = torch.stack([tensor.isfinite().all() for tensor in named.values()])
    check(facts if valid is None else torch.cat([facts, valid.sum(dim=1)]), verify)


def _kind(tensor: Tensor) -> str:
    return f"{tensor.dtype} {list(tensor.shape)}"
