"""Check what is kept at each budget: the tokens, the layer-average, and the logits after pruning."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import PrivateAttr
from torch import Tensor

from tops_engine import selection
from tops_engine.answers.report import Answer
from tops_engine.conversation.messages import Message
from tops_engine.engine import Engine
from tops_engine.methods import Method, Positions, Selection
from tops_engine.methods.tops import TOPS
from tops_engine.settings import Generation, Pruning
from tops_engine.verification.masked_reference import answer_logits
from tops_engine.verification.result import BudgetCheck, MaskedCheck, SelectedStage
from tops_engine.verification.rounding import RUN_FACTOR, SELECTION_ROUNDING, logit_rounding

#: A layer-average is met if it is nearer than this many tokens: counts of tokens are whole numbers.
LAYER_AVERAGE_ROUNDING = 1.0

#: Tokens of the pruned answer whose logits are compared.
NUM_TOKENS = 4


@dataclass(frozen=True)
class Choice:
    """What a stage chose from: features [n, d], relevance float32 [n], and its selection in order."""

    features: Tensor
    relevance: Tensor
    order: list[int]


class RecordingTOPS(TOPS, register=False):
    """TOPS that keeps what each of its stages chose from."""

    _choices: list[Choice] = PrivateAttr(default_factory=list)

    @property
    def choices(self) -> list[Choice]:
        return self._choices

    def _select(self, features: list[Tensor], relevances: list[Tensor], counts: Sequence[int]) -> list[Selection]:
        selections = super()._select(features, relevances, counts)
        for feature, relevance, chosen in zip(features, relevances, selections, strict=True):
            assert chosen.order is not None
            self._choices.append(Choice(feature, relevance, chosen.order.tolist()))
        return selections


class RecordingPruning(Pruning):
    """A pruning by :class:`RecordingTOPS`."""

    @property
    def method_instance(self) -> Method:
        return self.recorder

    @property
    def recorder(self) -> RecordingTOPS:
        return self._recorder

    def model_post_init(self, _context: object) -> None:
        self._recorder = RecordingTOPS()


def check_budget(engine: Engine, messages: Sequence[Message], keep: float) -> BudgetCheck:
    """Run TOPS once, and compare each stage with the plain algorithm in float64 on the features that it saw."""
    engine.forget()
    pruning = RecordingPruning(method="tops", keep=keep)
    usage = engine.chat(messages, pruning, Generation(max_tokens=1)).usage
    stages = [_selected_stage(choice, pruning.recorder) for choice in pruning.recorder.choices]
    missed = abs(usage.layer_average - keep * usage.visual_tokens)
    return BudgetCheck(
        keep=keep,
        visual_tokens=usage.visual_tokens,
        layer_average=usage.layer_average,
        stages=stages,
        held=missed <= LAYER_AVERAGE_ROUNDING and all(stage.shortfall <= SELECTION_ROUNDING for stage in stages),
    )


def _selected_stage(choice: Choice, method: TOPS) -> SelectedStage:
    features, relevance = choice.features, choice.relevance
    if features.device.type == "mps":  # which has no float64
        features, relevance = features.cpu(), relevance.cpu()
    weights: dict[str, Any] = {"diversity_weight": method.alpha, "coverage_weight": method.lambda_}
    expected = selection.greedy_select_reference(features, relevance, len(choice.order), **weights)
    same = set(expected) == set(choice.order)
    return SelectedStage(
        num_tokens=len(features),
        num_kept=len(choice.order),
        same=same,
        shortfall=0.0 if same else selection.selection_shortfall(features, relevance, choice.order, **weights),
    )


def check_masked(engine: Engine, messages: Sequence[Message], keep: float, positions: Positions) -> MaskedCheck:
    """Compare the logits of a pruned answer with a run of transformers' layers over the whole sequence.

    With ``original`` positions dropped tokens are masked, with ``contiguous`` ones they are left out.
    """
    pruning = Pruning(keep=keep, positions=positions)
    engine.forget()
    answer = engine.chat(messages, pruning, Generation(max_tokens=NUM_TOKENS))
    ours = engine.answer_logits(messages, pruning, answer.token_ids)
    expected = _reference_logits(engine, messages, answer, positions)
    finite = expected.isfinite()
    difference = float((ours - expected)[finite].abs().max())
    tolerance = RUN_FACTOR * logit_rounding(expected[finite], engine.family.decoder.dtype)
    return MaskedCheck(
        keep=keep,
        positions=positions,
        largest_difference=difference,
        tolerance=tolerance,
        held=difference <= tolerance,
    )


def _reference_logits(engine: Engine, messages: Sequence[Message], answer: Answer, positions: Positions) -> Tensor:
    decoder = engine.family.decoder
    # Flash attention takes no mask of single tokens.
    attention = "sdpa" if decoder.attention.startswith("flash") else decoder.attention
    with decoder.attending_by(attention), torch.inference_mode():
        return answer_logits(engine.family, messages, answer, positions, answer.token_ids).float().cpu()
