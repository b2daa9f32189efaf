"""The slow reference of pruning, which `tops verify` runs too; see :mod:`tops_engine.verification.masked_reference`."""

import pytest

from tops_engine.verification.masked_reference import (
    TextInputs,
    answer_logits,
    greedy_tokens,
    model_inputs_embeds,
    model_text_inputs,
)

__all__ = [
    "TextInputs",
    "answer_logits",
    "greedy_tokens",
    "keeps_and_positions",
    "model_inputs_embeds",
    "model_text_inputs",
]

#: The budgets and positions at which answers are compared; each budget and each numbering is in every run.
keeps_and_positions = pytest.mark.parametrize(
    ("keep", "positions"),
    [
        (0.6, "original"),
        (0.3, "contiguous"),
        pytest.param(0.6, "contiguous", marks=pytest.mark.full),
        pytest.param(0.3, "original", marks=pytest.mark.full),
    ],
)
