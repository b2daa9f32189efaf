"""Measure what pruning does to the unpruned model's own answers about the packaged pictures."""

import statistics
from collections.abc import Callable, Sequence

from tops_engine.conversation.messages import Message
from tops_engine.engine import Engine
from tops_engine.errors import TopsError
from tops_engine.evaluation.fidelity import fidelity
from tops_engine.evaluation.prunings import UNPRUNED, pruning_name, reseeded
from tops_engine.settings import Generation, Pruning
from tops_engine.verification.result import FidelityRow

GENERATION = Generation(max_tokens=32)


def measure_fidelity(
    engine: Engine,
    conversations: Sequence[Sequence[Message]],
    prunings: Sequence[Pruning],
    step: Callable[[], None],
) -> list[FidelityRow]:
    """Answer every conversation unpruned and with each pruning; ``step`` is called after each pruning.

    A pruning that cannot run has a row with the error.
    """
    unpruned = [engine.scored_batch([messages], UNPRUNED, GENERATION)[0] for messages in conversations]
    step()
    rows = []
    for pruning in prunings:
        measured, shares = [], []
        error = None
        try:
            for number, (messages, reference) in enumerate(zip(conversations, unpruned, strict=True)):
                own = reseeded(pruning, number)
                (scored,) = engine.scored_batch([messages], own, GENERATION, [reference.answer.token_ids])
                measured.append(fidelity(reference, scored))
                shares.append(scored.answer.usage.kept_fraction)
        except TopsError as refused:
            error = str(refused)
        rows.append(
            FidelityRow(pruning=pruning_name(pruning), error=error)
            if error is not None
            else FidelityRow(
                pruning=pruning_name(pruning),
                loss_increase=statistics.fmean(one.loss_increase for one in measured),
                agreement=statistics.fmean(one.agrees for one in measured),
                first_token_kl=statistics.fmean(one.first_token_kl for one in measured),
                layer_average=statistics.fmean(shares),
                questions=len(measured),
            )
        )
        step()
    return rows
