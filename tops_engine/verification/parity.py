"""Check that the unpruned engine is the model itself: it writes the tokens of transformers' ``generate``."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from tops_engine.conversation.messages import Message, read_conversation
from tops_engine.engine import Engine
from tops_engine.errors import TopsError
from tops_engine.evaluation.prunings import UNPRUNED
from tops_engine.settings import Generation
from tops_engine.verification.result import Difference, ParityCase
from tops_engine.verification.rounding import logit_rounding
from tops_engine.verification.transformers_model import Generated, generate

#: Tokens of each answer that are compared.
NUM_TOKENS = 16


@dataclass(frozen=True)
class _Asked:
    """A conversation that the model can answer, with both answers to it."""

    name: str
    messages: Sequence[Message]
    visual_tokens: int
    expected: Generated
    alone: list[int]


def check_parity(
    engine: Engine, conversations: dict[str, list[Message]], step: Callable[[], None]
) -> tuple[list[ParityCase], list[str]]:
    """Answer conversations with keep=1.0, each alone and all in one batch, and compare with ``generate``.

    Parameters
    ----------
    conversations : by their names.
    step : called after each conversation and after the batch.

    Returns
    -------
    A case for each conversation, and notes on what could not be compared.
    """
    generation = Generation(max_tokens=NUM_TOKENS)
    asked, skipped = [], {}
    for name, messages in conversations.items():
        try:
            answer = engine.chat(messages, UNPRUNED, generation)
            prompt = engine.family.prepare(read_conversation(messages))
            expected = generate(engine.family, prompt, NUM_TOKENS)
            asked.append(_Asked(name, messages, answer.usage.visual_tokens, expected, answer.token_ids))
        except TopsError as error:
            skipped[name] = ParityCase(prompt=name, skipped=str(error))
        step()
    together, notes = _batch(engine, asked, generation)
    step()
    cases = {
        one.name: _compare(engine, one, batch_tokens) for one, batch_tokens in zip(asked, together, strict=True)
    } | skipped
    return [cases[name] for name in conversations], notes


def _batch(
    engine: Engine, asked: Sequence[_Asked], generation: Generation
) -> tuple[Sequence[list[int] | None], list[str]]:
    """Return the tokens of all answers in one batch; None for each if the batch cannot be answered."""
    try:
        answers = engine.batch([one.messages for one in asked], UNPRUNED, generation)
    except TopsError as error:
        return [None] * len(asked), [f"The prompts of the parity check were not asked in one batch: {error}"]
    return [answer.token_ids for answer in answers], []


def _compare(engine: Engine, one: _Asked, in_batch: list[int] | None) -> ParityCase:
    logits = engine.answer_logits(one.messages, UNPRUNED, one.expected.tokens)
    tokens: dict[Literal["alone", "in a batch"], list[int] | None] = {"alone": one.alone, "in a batch": in_batch}
    return ParityCase(
        prompt=one.name,
        visual_tokens=one.visual_tokens,
        answer_tokens=len(one.expected.tokens),
        logits_difference=float((logits - one.expected.logits).abs().max()),
        differences=[
            _difference(engine, where, one.expected, written, logits)
            for where, written in tokens.items()
            if written is not None and written != one.expected.tokens
        ],
    )


def _difference(
    engine: Engine,
    where: Literal["alone", "in a batch"],
    expected: Generated,
    written: Sequence[int],
    engine_logits: Tensor,
) -> Difference:
    """Describe the first token that differs; one answer that only goes on longer differs in its next token."""
    pairs = list(zip(expected.tokens, written, strict=False))
    position = next((number for number, (one, other) in enumerate(pairs) if one != other), len(pairs))
    if position == len(pairs):
        # One answer ended where the other goes on although both wrote the same: no logit can explain that.
        position -= 1
    both = [expected.tokens[position], written[position]]
    theirs, ours = expected.logits[position], engine_logits[position]
    margin = float(theirs[both[0]] - theirs[both[1]])
    rounding = logit_rounding(theirs[torch.isfinite(theirs)], engine.family.decoder.dtype)
    names = [engine.family.tokenizer.decode([token]) for token in both]
    return Difference(
        where=where,
        position=position,
        token_ids=(both[0], both[1]),
        tokens=(names[0], names[1]),
        transformers_logits=(float(theirs[both[0]]), float(theirs[both[1]])),
        engine_logits=(float(ours[both[0]]), float(ours[both[1]])),
        margin=margin,
        tie=both[0] != both[1] and margin <= rounding,
    )
