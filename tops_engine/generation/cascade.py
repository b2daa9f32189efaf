"""Run a cascade: answer with few visual tokens, and where the model is unsure with more."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from tops_engine.answers.base import Piece
from tops_engine.answers.report import Answer, CascadeStep, CascadeUsage, Flops, Timings
from tops_engine.conversation.messages import Conversation
from tops_engine.generation.certainty import Certainty
from tops_engine.generation.prompts import PreparedPrompts
from tops_engine.generation.run import Run
from tops_engine.settings import Pruning

Conversations = Sequence[Conversation] | PreparedPrompts


class BeginRun(Protocol):
    """Begin a run of some conversations with one budget."""

    def __call__(
        self,
        conversations: Conversations,
        pruning: Pruning,
        certainty: Certainty | None,
    ) -> Run: ...


@dataclass
class Step:
    """One budget of the cascade while it runs.

    Attributes
    ----------
    rows : the number of each conversation of the run in the whole batch.
    confidences : of each, how sure the model is of its first tokens; empty before the decision and at the last budget.
    deciding : seconds of writing before the decision.
    """

    run: Run
    rows: list[int]
    certainty: Certainty | None
    confidences: list[float]
    deciding: float = 0.0

    @property
    def is_ready(self) -> bool:
        """Whether enough tokens are written to decide."""
        counts = self.run.token_counts
        assert self.certainty is not None
        return self.run.done or min(counts) >= self.certainty.num_steps


class CascadeRun:
    """A batch of conversations that are answered with the first budget that the model is sure with.

    It is used as a :class:`~tops_engine.generation.run.Run`. Text is given out from the decision on: what an abandoned
    answer began with is never shown. Pictures are encoded once. Only the conversations that the model is unsure of are
    read again; the others are written on meanwhile.

    Parameters
    ----------
    begin : begins the run of each budget.
    conversations, pruning : what is asked, and the cascade.
    """

    def __init__(self, begin: BeginRun, conversations: Conversations, pruning: Pruning) -> None:
        self._began = time.perf_counter()
        self._begin = begin
        self._pruning = pruning
        self._steps: list[Step] = []
        self._held: list[list[Piece]] = [[] for _ in range(len(conversations))]
        self._add_step(conversations, list(range(len(conversations))))

    @property
    def done(self) -> bool:
        return all(step.run.done for step in self._steps)

    def start(self) -> list[list[Piece]]:
        """Read the prompts with the first budget; return the pieces of the answers that the model is sure of."""
        self._start_newest()
        self._decide()
        return self._release()

    def step(self) -> list[list[Piece]]:
        """Write one more token of each answer; return the pieces that may be shown."""
        for step in self._steps:
            if not step.run.done:
                self._hold(step, step.run.step())
        self._decide()
        return self._release()

    def cancel(self) -> list[list[Piece]]:
        """Stop writing; answers that were not decided yet end as they are."""
        for step in self._steps:
            self._hold(step, step.run.cancel())
        self._newest.certainty = None
        return self._release()

    def answers(self, cache_bytes: int = 0) -> list[Answer]:
        """Return the answer to each conversation, with what all its budgets cost."""
        found: list[list[tuple[Step, Answer, int]]] = [[] for _ in self._held]
        times = []
        for step in self._steps:
            answers = step.run.answers(cache_bytes)
            times.append(answers[0].timings)
            for place, (row, answer) in enumerate(zip(step.rows, answers, strict=True)):
                found[row].append((step, answer, place))
        timings = self._timings(times)
        costs = [sum(answer.usage.layer_average for _, answer, _ in parts) for parts in found]
        total = sum(parts[-1][1].usage.visual_tokens for parts in found)
        mean = sum(costs) / total if total else 1.0
        return [self._answer(parts, cost, mean, timings) for parts, cost in zip(found, costs, strict=True)]

    def scores(self, references: Sequence[Sequence[int]]) -> list[tuple[float, Tensor]]:
        """Score given answers with the budget that each conversation was answered with."""
        scores: dict[int, tuple[float, Tensor]] = {}
        for step in self._steps:
            own = step.run.scores([references[row] for row in step.rows])
            scores |= dict(zip(step.rows, own, strict=True))
        return [scores[row] for row in range(len(self._held))]

    @property
    def _newest(self) -> Step:
        return self._steps[-1]

    def _add_step(self, conversations: Conversations, rows: list[int]) -> None:
        number = len(self._steps)
        is_last = number == len(self._pruning.steps) - 1
        certainty = None if is_last else Certainty(self._pruning.decides_after, self._pruning.confident_by or "joint")
        run = self._begin(conversations, self._pruning.steps[number], certainty)
        self._steps.append(Step(run, rows, certainty, []))

    def _start_newest(self) -> None:
        self._hold(self._newest, self._newest.run.start())

    def _decide(self) -> None:
        """Go on to the next budget with the conversations of which the model is unsure, once that is known."""
        while self._newest.certainty is not None and self._newest.is_ready:
            step = self._newest
            assert step.certainty is not None
            step.deciding = step.run.decode_seconds
            step.confidences = step.certainty.of(step.run.token_counts)
            step.certainty = None
            unsure = [place for place, sure in enumerate(step.confidences) if sure < self._pruning.is_sure_from]
            if not unsure:
                return
            for place in unsure:
                step.run.abandon(place)
                self._held[step.rows[place]].clear()
            self._add_step(step.run.prompts_of(unsure), [step.rows[place] for place in unsure])
            self._start_newest()

    def _hold(self, step: Step, pieces: Sequence[Sequence[Piece]]) -> None:
        """Keep new pieces of the conversations that this budget answers."""
        later = {row for other in self._steps[self._steps.index(step) + 1 :] for row in other.rows}
        for row, new in zip(step.rows, pieces, strict=True):
            if row not in later:
                self._held[row] += new

    def _release(self) -> list[list[Piece]]:
        """Return what was held back of the decided answers."""
        undecided = set(self._newest.rows) if self._newest.certainty is not None else set()
        released: list[list[Piece]] = [[] if row in undecided else held for row, held in enumerate(self._held)]
        self._held = [held if row in undecided else [] for row, held in enumerate(self._held)]
        return released

    def _timings(self, each: Sequence[Timings]) -> Timings:
        deciding = sum(step.deciding for step in self._steps)
        return Timings(
            prepare=sum(one.prepare for one in each),
            vision=sum(one.vision for one in each),
            selection=sum(one.selection for one in each),
            prefill=sum(one.prefill for one in each),
            deciding=deciding,
            decode=sum(one.decode for one in each) - deciding,
            total=time.perf_counter() - self._began,
        )

    def _answer(self, parts: Sequence[tuple[Step, Answer, int]], cost: float, mean: float, timings: Timings) -> Answer:
        last = parts[-1][1]
        steps = [
            CascadeStep(
                keep=one.budget,
                layer_average=answer.usage.layer_average,
                confidence=step.confidences[place] if step.confidences else None,
            )
            for one, (step, answer, place) in zip(self._pruning.steps, parts, strict=False)
        ]
        cascade = CascadeUsage(answered_by=len(parts), steps=steps, answers=len(self._held), mean=mean)
        flops = Flops(
            vision=parts[0][1].flops.vision,
            selection=sum(answer.flops.selection for _, answer, _ in parts),
            prefill=sum(answer.flops.prefill for _, answer, _ in parts),
            decode=sum(answer.flops.decode for _, answer, _ in parts),
        )
        changes = {
            "pruning": self._pruning.resolved() | {"positions": last.pruning["positions"]},
            "usage": last.usage.model_copy(update={"layer_average": cost, "cascade": cascade}),
            "timings": timings,
            "flops": flops,
        }
        return last.model_copy(update=changes)
