"""Choosing the next token, with transformers' own logits processors."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from tops_engine.generation.constraint import Constraint
from tops_engine.settings import Generation


class Sampler:
    """Turns logits into tokens and remembers what was written.

    Parameters
    ----------
    generation : the caller's options.
    default_repetition_penalty : the checkpoint's, for when the caller gave none.
    prompt_ids : int64 [N] of each sequence, unpruned: what a repetition penalty looks at.
    device : where the logits are.
    constraint : the grammar the answers follow, if any. It comes after the repetition penalty and before temperature,
        top-k and top-p, which thus choose among what is allowed.
    """

    def __init__(
        self,
        generation: Generation,
        default_repetition_penalty: float,
        prompt_ids: Sequence[Tensor],
        device: torch.device,
        constraint: Constraint | None = None,
    ) -> None:
        self._processors = LogitsProcessorList()
        self._constraint = constraint
        penalty = generation.repetition_penalty or default_repetition_penalty
        self._history: Tensor | None = None
        if penalty != 1.0:
            self._processors.append(RepetitionPenaltyLogitsProcessor(penalty))
            # Padding repeats the row's first token, so that no row is punished for another one's length.
            rows = pad_sequence(list(prompt_ids), batch_first=True, padding_value=-1)
            self._history = torch.where(rows < 0, rows[:, :1], rows).to(device)
        if constraint is not None:
            self._processors.append(constraint)
        self._generators: list[torch.Generator] | None = None
        if generation.temperature > 0:
            self._processors.append(TemperatureLogitsWarper(generation.temperature))
            if generation.top_k:
                self._processors.append(TopKLogitsWarper(generation.top_k))
            if generation.top_p < 1:
                self._processors.append(TopPLogitsWarper(generation.top_p))
            self._generators = [torch.Generator(device) for _ in prompt_ids]
            for generator in self._generators:
                # The same seed for every sequence: an answer does not depend on its place in a batch.
                generator.manual_seed(generation.seed) if generation.seed is not None else generator.seed()

    def __call__(self, logits: Tensor) -> Tensor:
        """float32 [B, vocab] -> int64 [B]."""
        scores = self._processors(self._history, logits)
        if self._generators is None:
            tokens = scores.argmax(dim=-1)
        else:
            rows = zip(scores.softmax(dim=-1), self._generators, strict=True)
            tokens = torch.cat([torch.multinomial(row, 1, generator=generator) for row, generator in rows])
        if self._history is not None:
            self._history = torch.cat([self._history, tokens[:, None]], dim=1)
        if self._constraint is not None:
            self._constraint.accept(tokens)
        return tokens
