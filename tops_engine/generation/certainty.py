"""How sure a model is of the first tokens of its answers."""

from collections.abc import Sequence

import torch
from torch import Tensor

from tops_engine.settings.pruning_options import ConfidentBy


class Certainty:
    """The probability of the most probable token at each of the first steps of a batch of answers.

    It is that of the model with its repetition penalty and grammar, at temperature 1. A token that the grammar forces
    says nothing and does not count.

    Parameters
    ----------
    num_steps : how many steps count.
    by : how the probabilities of the steps are combined.
    """

    def __init__(self, num_steps: int, by: ConfidentBy) -> None:
        self.num_steps = num_steps
        self._by = by
        self._probabilities: list[Tensor] = []
        self._counts: list[Tensor] = []

    def add(self, scores: Tensor) -> None:
        """Take the scores of a step, float32 [B, vocab]; those after the first ``num_steps`` are ignored."""
        if len(self._probabilities) < self.num_steps:
            self._probabilities.append(scores.softmax(dim=-1).amax(dim=-1))
            self._counts.append(scores.isfinite().sum(dim=-1) > 1)

    def of(self, lengths: Sequence[int]) -> list[float]:
        """Return how sure the model is of each answer, of which ``lengths`` tokens are written; 1.0 without a choice.

        ``joint`` is the product of the probabilities, ``mean`` their mean.
        """
        probabilities, counts = torch.stack(self._probabilities, 1), torch.stack(self._counts, 1)
        steps = torch.arange(probabilities.shape[1], device=counts.device)
        counts = counts & (steps < torch.tensor(lengths, device=counts.device)[:, None])
        if self._by == "joint":
            sure: Tensor = torch.where(counts, probabilities, 1.0).prod(dim=1)
        else:
            sure = torch.where(counts, probabilities, 0.0).sum(1) / counts.sum(1).clamp_min(1)
            sure = torch.where(counts.any(1), sure, 1.0)
        found: list[float] = sure.tolist()
        return found
