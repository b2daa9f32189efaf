"""Measure times, memory and energy of answers: the budgets take turns, and medians count."""

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tops_engine.answers.report import Answer
from tops_engine.comparison.one_picture import cold_answer
from tops_engine.conversation.messages import Message, user_message
from tops_engine.device.energy import joules_used
from tops_engine.device.memory import PeakMemory
from tops_engine.engine import Engine
from tops_engine.errors import OutOfMemory
from tops_engine.settings import Generation, Pruning
from tops_engine.verification.pictures import PICTURES, picture
from tops_engine.verification.result import SpeedRow, Throughput

ROUNDS = 5
GENERATION = Generation(max_tokens=32)
QUESTION = "Describe the picture."

#: Most prompts in a batch. A processor gains little from batches, and its memory is the system's.
MOST_PROMPTS = 64
MOST_PROMPTS_CPU = 8

#: A larger batch is not tried after one that took this many seconds.
LONGEST_BATCH_S = 8.0


@dataclass(frozen=True)
class _Round:
    """One answer of one budget: the answer, peak memory in bytes, and joules."""

    answer: Answer
    peak: int | None
    joules: float | None


def measure_speed(engine: Engine, keeps: Sequence[float], step: Callable[[], None]) -> list[SpeedRow]:
    """Measure answers about the packaged pictures at each budget; ``step`` is called after each round and batch."""
    messages = [user_message(QUESTION, picture("photo"))]
    prunings = [Pruning(keep=keep) for keep in keeps]
    rounds: dict[Pruning, list[_Round]] = defaultdict(list)
    for number in range(ROUNDS + 1):
        for pruning in prunings:
            measured = _one_answer(engine, messages, pruning)
            if number:  # the first round warms up
                rounds[pruning].append(measured)
        step()
    sizes = {}
    for pruning in prunings:
        sizes[pruning] = _largest_batch(engine, pruning)
        step()
    seconds: dict[tuple[Pruning, int], list[tuple[float, int]]] = defaultdict(list)
    for _ in range(ROUNDS):
        for pruning in prunings:
            for size in dict.fromkeys((1, sizes[pruning])):
                seconds[pruning, size].append(_one_batch(engine, pruning, size))
        step()
    return [_row(pruning, rounds, seconds) for pruning in prunings]


def num_steps(keeps: Sequence[float]) -> int:
    """Return how often :func:`measure_speed` calls its ``step``."""
    return 2 * ROUNDS + 1 + len(keeps)


def _one_answer(engine: Engine, messages: Sequence[Message], pruning: Pruning) -> _Round:
    before, peak = joules_used(engine.device), PeakMemory(engine.device)
    answer = cold_answer(engine, messages, pruning, GENERATION)
    after = joules_used(engine.device)
    joules = after - before if before is not None and after is not None and after >= before else None
    return _Round(answer, peak.num_bytes, joules)


def _largest_batch(engine: Engine, pruning: Pruning) -> int:
    """Return the largest batch that fits into the memory, of those that are tried: 1, 2, 4 and so on."""
    size, largest = 1, MOST_PROMPTS if engine.device.type == "cuda" else MOST_PROMPTS_CPU
    while size < largest:
        try:
            seconds, _ = _one_batch(engine, pruning, 2 * size)
        except OutOfMemory:
            break
        size *= 2
        if seconds > LONGEST_BATCH_S:
            break
    return size


def _one_batch(engine: Engine, pruning: Pruning, size: int) -> tuple[float, int]:
    """Return the seconds of answering ``size`` prompts together, and the number of tokens that were written."""
    names = list(PICTURES)
    conversations = [[user_message(QUESTION, picture(names[number % len(names)]))] for number in range(size)]
    engine.forget()
    begun = time.perf_counter()
    answers = engine.batch(conversations, pruning, GENERATION)
    return time.perf_counter() - begun, sum(answer.usage.completion_tokens for answer in answers)


def _row(
    pruning: Pruning,
    rounds: dict[Pruning, list[_Round]],
    seconds: dict[tuple[Pruning, int], list[tuple[float, int]]],
) -> SpeedRow:
    own, unpruned = rounds[pruning], next(iter(rounds.values()))
    timings = [one.answer.timings for one in own]
    further = own[0].answer.usage.completion_tokens - 1
    peaks = [one.peak for one in own if one.peak is not None]
    joules = [one.joules for one in own if one.joules is not None]
    ratios = [
        base.answer.timings.first_token / one.answer.timings.first_token
        for base, one in zip(unpruned, own, strict=True)
    ]
    return SpeedRow(
        keep=float(pruning.budget),
        visual_tokens=own[0].answer.usage.layer_average,
        first_token_s=statistics.median(timing.first_token for timing in timings),
        selection_s=statistics.median(timing.selection for timing in timings),
        next_token_s=statistics.median(timing.decode for timing in timings) / further if further else None,
        first_token_ratio=statistics.median(ratios),
        throughput=[
            Throughput(
                batch=size,
                answers_per_s=size / statistics.median(second for second, _ in runs),
                tokens_per_s=statistics.median(tokens / second for second, tokens in runs),
            )
            for (of, size), runs in seconds.items()
            if of == pruning
        ],
        peak_bytes=max(peaks, default=None),
        energy_j=statistics.median(joules) if joules else None,
    )
