"""How close a pruned model stays to the unpruned one, measured without labels."""

from pydantic import BaseModel, ConfigDict
from torch import Tensor

from tops_engine.answers.report import ScoredAnswer


class Fidelity(BaseModel):
    """A pruned answer compared with the unpruned model's answer to the same question.

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
    """Compare two answers; ``pruned`` was scored on the unpruned answer's tokens."""
    return Fidelity(
        agrees=same_text(unpruned.answer.text, pruned.answer.text),
        loss_increase=pruned.loss - unpruned.loss,
        first_token_kl=divergence(unpruned.first_token, pruned.first_token),
    )


def same_text(first: str, second: str) -> bool:
    """Return whether two answers are the same text, apart from space around them."""
    return first.strip() == second.strip()


def divergence(log_p: Tensor, log_q: Tensor) -> float:
    """Return KL(p || q) in nats, at least 0, of two distributions given as log-probabilities, float32 [vocab]."""
    possible = log_p != float("-inf")
    terms = (log_p.exp() * (log_p - log_q))[possible]
    return float(terms.sum().clamp(min=0))
