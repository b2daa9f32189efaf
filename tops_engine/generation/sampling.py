"""Choose the next token, with the logits processors of transformers."""

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

from tops_engine.device.seeds import seeded
from tops_engine.generation.certainty import Certainty
from tops_engine.generation.constraint import Constraint
from tops_engine.generation.reasoning import ReasoningBudget
from tops_engine.settings import Generation


class Sampler:
    """The choice of tokens from logits, with a memory of the tokens written so far.

    Parameters
    ----------
    generation : the caller's options.
    default_repetition_penalty : the checkpoint's, for when the caller gave none.
    prompt_ids : int64 [N] of each sequence, unpruned: what a repetition penalty looks at.
    device : where the logits are.
    constraint : the grammar the answers follow, if any. It comes after the repetition penalty and before temperature,
        top-k and top-p, which thus choose among what is allowed.
    budget : bounds the reasoning, if anything does.
    certainty : notes how sure the model is, if anybody asks.
    """

    def __init__(
        self,
        generation: Generation,
        default_repetition_penalty: float,
        prompt_ids: Sequence[Tensor],
        device: torch.device,
        constraint: Constraint | None = None,
        budget: ReasoningBudget | None = None,
        certainty: Certainty | None = None,
    ) -> None:
        self._processors, self._warpers = LogitsProcessorList(), LogitsProcessorList()
        self._certainty = certainty
        self._followers = [follower for follower in (constraint, budget) if follower is not None]
        penalty = generation.repetition_penalty or default_repetition_penalty
        self._history: Tensor | None = None
        if penalty != 1.0:
            self._processors.append(RepetitionPenaltyLogitsProcessor(penalty))
            # Padding repeats the row's first token, so that no row is penalised because of another one's length.
            rows = pad_sequence(list(prompt_ids), batch_first=True, padding_value=-1)
            self._history = torch.where(rows < 0, rows[:, :1], rows).to(device)
        self._processors.extend(self._followers)
        self._generators: list[torch.Generator] | None = None
        if generation.temperature > 0:
            self._warpers.append(TemperatureLogitsWarper(generation.temperature))
            if generation.top_k:
                self._warpers.append(TopKLogitsWarper(generation.top_k))
            if generation.top_p < 1:
                self._warpers.append(TopPLogitsWarper(generation.top_p))
            # The same seed for every sequence: an answer does not depend on its place in a batch.
            self._generators = [seeded(generation.seed, device) for _ in prompt_ids]

    def __call__(self, logits: Tensor) -> Tensor:
        """Choose a token of each sequence: float32 [B, vocab] -> int64 [B]."""
        scores = self._processors(self._history, logits)
        if self._certainty is not None:
            self._certainty.add(scores)
        scores = self._warpers(self._history, scores)
        tokens = scores.argmax(dim=-1) if self._generators is None else draw(scores.softmax(dim=-1), self._generators)
        if self._history is not None:
            self._history = torch.cat([self._history, tokens[:, None]], dim=1)
        for follower in self._followers:
            follower.accept(tokens)
        return tokens


def draw(probabilities: Tensor, generators: Sequence[torch.Generator | None]) -> Tensor:
    """Draw a token of each row: float32 [B, vocab] -> int64 [B].

    The method is that of ``torch.multinomial`` for one sample (the smallest of exponential variables, each with the
    rate of its token), without its check of the values, for which it would wait for a GPU.
    """
    times = torch.empty_like(probabilities)
    for row, generator in zip(times, generators, strict=True):
        row.exponential_(generator=generator)
    return (probabilities / times).argmax(dim=-1)


class TokensInTransit:
    """Tokens, int64 [B], that are copied to the host while the device runs the work launched after them."""

    def __init__(self, tokens: Tensor) -> None:
        self._on_host = tokens.to("cpu", non_blocking=True)
        self._arrived: torch.cuda.Event | None = None
        if tokens.is_cuda:
            self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._arrived.record(torch.cuda.current_stream(tokens.device))

    def tolist(self) -> list[int]:
        """Wait for these tokens, and not for later work; return them."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._on_host.tolist()
