"""The likelihood of given answers under the model."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from tops_engine.generation.decode import Decoding
from tops_engine.generation.static import StaticDecoding


def score_references(
    decoding: Decoding | StaticDecoding, first_logits: Tensor, references: Sequence[Sequence[int]]
) -> list[tuple[float, Tensor]]:
    """Score reference answers after the pruned prompts, in place of the answers that were written.

    Parameters
    ----------
    decoding : the state of the run that read the prompts.
    first_logits : float32 [B, vocab], the logits of the first token of each answer.
    references : the tokens of an answer to each prompt.

    Returns
    -------
    For each prompt: the mean negative log-likelihood of a token, in nats; the log-probabilities of the first token,
    float32 [vocab] on the CPU.
    """
    tokens = pad_sequence([torch.tensor(tokens) for tokens in references], batch_first=True, padding_value=-1)
    tokens = tokens.to(first_logits.device)
    logits = reference_logits(decoding, first_logits, tokens.clamp(min=0))
    totals = F.cross_entropy(logits.transpose(1, 2), tokens, ignore_index=-1, reduction="none").sum(dim=1)
    losses = (totals / (tokens >= 0).sum(dim=1)).tolist()
    return list(zip(losses, first_logits.log_softmax(dim=-1).cpu(), strict=True))


def reference_logits(decoding: Decoding | StaticDecoding, first_logits: Tensor, tokens: Tensor) -> Tensor:
    """Return the logits before each token of given answers, int64 [B, q]: float32 [B, q, vocab]."""
    logits = first_logits[:, None]
    if tokens.shape[1] > 1:
        logits = torch.cat([logits, decoding.read_instead(tokens[:, :-1])], dim=1)
    return logits
