"""How near a pruned model stays to the unpruned one, without any labels."""

import math
from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict
from torch import Tensor

from tops_engine.answers.report import ScoredAnswer
from tops_engine.methods import METHODS
from tops_engine.settings import Pruning

UNPRUNED = Pruning(method="none", keep=1.0)


class Fidelity(BaseModel):
    """One pruned answer against the unpruned model's answer to the same question.

    Attributes
    ----------
    agrees : whether the two texts are the same.
    loss_increase : how much less likely the unpruned model's answer became, in nats a token (the paper's figure 2).
    first_token_kl : Kullback-Leibler divergence of the first token's distribution from the unpruned one, in nats.
    """

    model_config = ConfigDict(frozen=True)

    agrees: bool
    loss_increase: float
    first_token_kl: float


def fidelity(unpruned: ScoredAnswer, pruned: ScoredAnswer) -> Fidelity:
    """Compare an answer that was scored on the unpruned model's own one with it."""
    return Fidelity(
        agrees=same_text(unpruned.answer.text, pruned.answer.text),
        loss_increase=pruned.loss - unpruned.loss,
        first_token_kl=divergence(unpruned.first_token, pruned.first_token),
    )


def same_text(first: str, second: str) -> bool:
    return first.strip() == second.strip()


def divergence(log_p: Tensor, log_q: Tensor) -> float:
    """KL(p || q) in nats of two distributions given as log-probabilities, float32 [vocab]; never below 0."""
    possible = log_p != float("-inf")
    terms = (log_p.exp() * (log_p - log_q))[possible]
    return float(terms.sum().clamp(min=0))


def name(pruning: Pruning) -> str:
    """The method with its options, and the budget: ``tops:alpha=0.4 0.222``."""
    return f"{pruning.label} {budget(pruning)}"


def budget(pruning: Pruning) -> str:
    """What sets the budget, as one types it: ``0.222``, ``llava-1.5-7b/64`` or ``0:256,12:64``."""
    if pruning.schedule is None:
        return str(pruning.keep)
    if isinstance(pruning.schedule, str):
        return pruning.schedule
    return ",".join(f"{stage.layer}:{stage.num_tokens}" for stage in pruning.schedule)


def without_unpruned(prunings: Sequence[Pruning]) -> list[Pruning]:
    """Each pruning once, and not ``none``, which every comparison runs anyway."""
    return [pruning for pruning in dict.fromkeys(prunings) if pruning.method != UNPRUNED.method]


def reseeded(pruning: Pruning, number: int) -> Pruning:
    """Another seed for each ``number`` where none was given: a method that draws must not be judged by one draw."""
    options = pruning.model_extra or {}
    if "selection_seed" not in METHODS[pruning.method].model_fields or "selection_seed" in options:
        return pruning
    return Pruning(**pruning.model_dump() | {"selection_seed": number})


def interval(successes: int, trials: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's confidence interval of a rate, 95 % by default.

    Unlike the normal approximation it makes sense at rates near 1, where the search for a safe budget happens.
    """
    rate, spread = successes / trials, z * z / trials
    centre = (rate + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(rate * (1 - rate) / trials + spread / (4 * trials))
    return max(0.0, centre - half), min(1.0, centre + half)
