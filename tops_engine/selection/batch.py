"""Checking the input of a greedy selection."""

from collections.abc import Sequence
from operator import index
from typing import NamedTuple

import torch
from torch import Tensor

from tops_engine.device.checks import check
from tops_engine.errors import InvalidInput, quote


class Batch(NamedTuple):
    """The checked input of a selection.

    Attributes
    ----------
    features : [B, N, d], 0 at padding.
    relevance : [B, N], float64 for float64 features and float32 for others, 0 at padding, at most 1 in size; None
        without relevance.
    valid : bool [B, N], None without padding.
    num_keep : the number of tokens to select, for each sample.
    """

    features: Tensor
    relevance: Tensor | None
    valid: Tensor | None
    num_keep: list[int]

    def taken(self) -> Tensor:
        """Return which tokens cannot be selected: bool [B, N]."""
        if self.valid is None:
            return torch.zeros(self.features.shape[:2], dtype=torch.bool, device=self.features.device)
        return ~self.valid


def checked_batch(
    features: Tensor, relevance: Tensor | None, num_keep: int | Sequence[int], valid: Tensor | None
) -> Batch:
    """Check the parameters of :func:`tops_engine.selection.greedy_select`; see there for the errors."""
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
        # The check of the values may be deferred; until then the computation needs finite numbers.
        features = features.nan_to_num(0, 0, 0)
        relevance = relevance.nan_to_num(0, 0, 0) if relevance is not None else None
    if relevance is not None:
        # Neither normalization depends on the scale; with values of at most 1 no sum overflows.
        largest = relevance.abs().amax(dim=-1, keepdim=True)
        relevance = relevance / largest.masked_fill(largest == 0, 1)
    return Batch(features, relevance, valid, keep)


def _counts(num_keep: int | Sequence[int], num_samples: int) -> list[int]:
    """Return K for each sample."""
    try:
        keep = [index(num) for num in (num_keep if isinstance(num_keep, Sequence) else [num_keep] * num_samples)]
    except TypeError:
        raise InvalidInput(f"num_keep is {quote(num_keep)}; give an integer, or one for each sample.") from None
    if len(keep) != num_samples:
        raise InvalidInput(f"num_keep has {len(keep)} entries for {num_samples} samples; give one for each.")
    return keep


def _check_values(features: Tensor, relevance: Tensor | None, keep: list[int], valid: Tensor | None) -> None:
    """Check the values: finite numbers, and K within the number of valid tokens."""
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
