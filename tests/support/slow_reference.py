"""The slow reference of pruning, which `tops verify` runs too; see :mod:`tops_engine.verification.masked_reference`."""

from tops_engine.verification.masked_reference import (
    TextInputs,
    answer_logits,
    greedy_tokens,
    model_inputs_embeds,
    model_text_inputs,
)

__all__ = ["TextInputs", "answer_logits", "greedy_tokens", "model_inputs_embeds", "model_text_inputs"]
