"""Measure how long a model takes to its first token on this device, so that a budget can be given in milliseconds."""

import statistics
from collections.abc import Sequence
from itertools import product

import numpy as np
from PIL import Image

from tops_engine.conversation.messages import user_message
from tops_engine.device.cost_model import CostModel
from tops_engine.engine import Engine
from tops_engine.progress import Progress, no_progress
from tops_engine.settings import Generation, Pruning

KEEPS = (1.0, 0.5, 0.222, 0.111)
NUM_PICTURES = (1, 2)
QUESTIONS = ("What is in the picture?", "What is in the picture? " * 12)
SIZE = (640, 480)
ONE_TOKEN = Generation(max_tokens=1)


def measure_costs(engine: Engine, rounds: int = 5, progress: Progress = no_progress) -> CostModel:
    """Ask about pictures of random pixels at several budgets, in turns, and fit a :class:`CostModel`.

    Parameters
    ----------
    rounds : timed rounds after one that is not counted; the median of each question counts.
    progress : receives the number of rounds.
    """
    pixels = np.random.default_rng(0).integers(0, 256, (max(NUM_PICTURES), SIZE[1], SIZE[0], 3), dtype=np.uint8)
    pictures = [Image.fromarray(one) for one in pixels]
    asked = list(product(KEEPS, NUM_PICTURES, QUESTIONS))
    before: list[list[float]] = [[] for _ in asked]
    prefill: list[list[float]] = [[] for _ in asked]
    sizes, flops = [0] * len(asked), [0] * len(asked)
    for turn in range(rounds + 1):
        progress(turn, rounds + 1)
        for number, (keep, count, question) in enumerate(asked):
            engine.forget()
            answer = engine.chat([user_message(question, *pictures[:count])], Pruning(keep=keep), ONE_TOKEN)
            sizes[number], flops[number] = answer.usage.visual_tokens, answer.flops.prefill
            if turn:
                times = answer.timings
                before[number].append(1e3 * (times.prepare + times.vision + times.selection))
                prefill[number].append(1e3 * times.prefill)
    progress(rounds + 1, rounds + 1)
    measured = [statistics.median(times) for times in before], [statistics.median(times) for times in prefill]
    fitted = CostModel(
        about=engine.cost_key,
        before_ms=_line(sizes, measured[0]),
        prefill_ms=_line([count / 1e9 for count in flops], measured[1]),
        error=0.0,
    )
    errors = [
        abs(fitted.first_token_ms(size, count) / (one + other) - 1)
        for size, count, one, other in zip(sizes, flops, *measured, strict=True)
    ]
    return fitted.model_copy(update={"error": statistics.median(errors)})


def _line(amounts: Sequence[float], times: Sequence[float]) -> tuple[float, float]:
    """Return a constant and a slope, neither below 0, by least squares."""
    slope, constant = np.polyfit(amounts, times, 1)
    if slope < 0:
        return float(np.mean(times)), 0.0
    if constant < 0:
        return 0.0, float(np.dot(amounts, times) / np.dot(amounts, amounts))
    return float(constant), float(slope)
