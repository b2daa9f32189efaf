"""The score that greedy selection maximises (TOPS, arXiv 2606.27161, algorithms 1 and 2)."""

from dataclasses import dataclass
from math import inf, isfinite
from typing import Literal, get_args

import torch
from torch import Tensor

from tops_engine.errors import InvalidInput, quote
from tops_engine.selection.similarity import ROUNDING

Normalization = Literal["mean", "minmax"]


@dataclass(frozen=True)
class Objective:
    """The criteria and their weights; the fields are parameters of :func:`tops_engine.selection.greedy_select`."""

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
            raise InvalidInput(f"normalization is {quote(self.normalization)}; use 'mean' or 'minmax'.")

    def relevance(self, relevance: Tensor | None) -> Tensor | None:
        """Return the relevance if it takes part, else None."""
        if self.use_relevance and relevance is None:
            raise InvalidInput("relevance is None; give one value a token, or use_relevance=False.")
        return relevance if self.use_relevance else None

    def score(self, relevance: Tensor | None, closest: Tensor, coverage: Tensor | None, taken: Tensor) -> Tensor:
        """Score the tokens of U, those not ``taken``; the others get -inf. All tensors are [..., N]."""
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
        """Bring values to one scale over U, ignoring differences up to ``noise``. All tensors are [..., N]."""
        if noise:
            # Otherwise rounding errors would be scaled up when no token can gain anything.
            values = values.masked_fill(values <= noise, 0)
        if self.normalization == "minmax":
            lowest = values.masked_fill(taken, inf).amin(dim=-1, keepdim=True)
            span = values.masked_fill(taken, -inf).amax(dim=-1, keepdim=True) - lowest
            return ((values - lowest) / span).masked_fill(span <= noise, 0)
        total = values.abs().masked_fill(taken, 0).sum(dim=-1, keepdim=True)
        mean = total / (~taken).sum(dim=-1, keepdim=True)
        return (values / mean).masked_fill(mean == 0, 0)
