"""TOPS, Token Optimal Preservation Sets (arXiv 2606.27161)."""

import itertools
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, Literal

from pydantic import Field, field_serializer, field_validator

from tops_engine import selection
from tops_engine.budget import Keep, Preset, Stage, at_same_depth, stages_for, stages_inside
from tops_engine.device.lazy import Tensor, torch
from tops_engine.methods.base import Method, Selection
from tops_engine.methods.tokens import LayerTokens, VisualTokens
from tops_engine.methods.tops_presets import PRESETS

Criterion = Literal["relevance", "coverage", "diversity"]
Raters = Literal["dynamic", "last", "all"]

#: (fraction of the layers, multiple of the budget T): 2T before the language model, T/2 from 3/8 of its layers and T/4
#: from 3/4 of them, which averages T.
TOPS_SHAPE = ((0.0, 2.0), (3 / 8, 0.5), (3 / 4, 0.25))

#: Layers of 32 at which the second stage prunes when it is alone. Later ones could not meet a budget below 3/8.
SECOND_STAGE_ALONE = (2, 12)


class TOPS(Method):
    """Keep tokens that are relevant to the question, represent the other tokens and do not repeat each other.

    Tokens are chosen one after the other (greedily). Stage I, right after the projector, takes the attention of [CLS]
    as relevance. Stage II, between decoder layers, takes the attention of text raters (algorithms 1 and 2 of the
    paper). The ablations of the paper are options: any of the criteria, and either stage alone. One stage alone meets
    the same layer-average: the first prunes everything before the language model; the second prunes at layers 2 and 12
    of 32, or at the same depth in other models, and keeps half as many tokens from its second layer on.
    """

    name = "tops"
    source = "arXiv 2606.27161"
    presets: ClassVar[Mapping[str, Preset]] = PRESETS
    first_stage_options: ClassVar[Mapping[str, Any]] = {"stages": "first"}
    second_stage_options: ClassVar[Mapping[str, Any]] = {"stages": "second"}
    signals = ("vision_attention",)

    alpha: float = Field(default=0.5, ge=0, le=10, description="Weight of semantic diversity.")
    lambda_: float = Field(default=0.5, ge=0, le=10, alias="lambda", description="Weight of information coverage.")
    criteria: frozenset[Criterion] = Field(
        default=frozenset({"relevance", "coverage", "diversity"}),
        min_length=1,
        description="Criteria that take part, separated by commas.",
    )
    normalization: Literal["mean", "minmax"] = Field(
        default="mean", description="How criteria are scaled: by their mean, or from minimum to maximum."
    )
    stages: Literal["both", "first", "second"] = Field(
        default="both",
        description="Prune at both stages, only before the language model (first) or only between its layers (second).",
    )
    raters: Raters = Field(
        default="dynamic",
        description="Text tokens whose attention rates the visual tokens: those above average (dynamic), the last one, "
        "or all.",
    )

    @field_validator("criteria", mode="before")
    @classmethod
    def _criteria_as_text(cls, value: object) -> object:
        """Read ``relevance,coverage`` or ``relevance+coverage``, which users type."""
        return value.replace(" ", "").replace("+", ",").split(",") if isinstance(value, str) else value

    @field_serializer("criteria")
    def _in_order(self, value: frozenset[Criterion]) -> list[str]:
        return sorted(value)

    @property
    def prunes_before_the_llm(self) -> bool:
        return self.stages != "second"

    @property
    def prunes_between_layers(self) -> bool:
        return self.stages != "first"

    def plan(self, num_visual_tokens: int, num_layers: int, keep: Keep) -> tuple[Stage, ...]:
        if self.stages == "first":
            return super().plan(num_visual_tokens, num_layers, keep)
        if self.stages == "second":
            layers = at_same_depth(SECOND_STAGE_ALONE, 32, num_layers)
            sizes = (1.0, 0.5)[: len(layers)]
            return stages_inside(keep, num_visual_tokens, num_layers, layers, sizes, option="schedule")
        return stages_for(keep, num_visual_tokens, num_layers, TOPS_SHAPE)

    def select_visual(self, images: Sequence[VisualTokens], counts: Sequence[int]) -> list[Selection]:
        relevances = [image.vision_attention() for image in images]
        return self._select([image.features for image in images], relevances, counts)

    def select_at_layer(self, images: Sequence[LayerTokens], counts: Sequence[int]) -> list[Selection]:
        relevances = [rater_relevance(image.attention("text"), self.raters) for image in images]
        return self._select([image.hidden_states for image in images], relevances, counts)

    def selection_flops(self, num_tokens: int, num_kept: int, feature_size: int) -> int:
        # The similarity of all pairs; then each step compares one of its rows.
        return 2 * num_tokens * num_tokens * feature_size + num_kept * num_tokens

    def select_visual_jointly(
        self, images: Sequence[VisualTokens], count: int, least: Sequence[int]
    ) -> list[Selection]:
        # The attention of a picture sums to about 1, however many tokens it has; scaled to a mean of 1, pictures of
        # different sizes compare.
        attentions = [image.vision_attention() for image in images]
        relevances = [values / values.mean().clamp_min(torch.finfo(values.dtype).tiny) for values in attentions]
        return self._select_jointly([image.features for image in images], relevances, count, least)

    def select_at_layer_jointly(
        self, images: Sequence[LayerTokens], count: int, least: Sequence[int]
    ) -> list[Selection]:
        relevances = [rater_relevance(image.attention("text"), self.raters) for image in images]
        return self._select_jointly([image.hidden_states for image in images], relevances, count, least)

    def _select(self, features: list[Tensor], relevances: list[Tensor], counts: Sequence[int]) -> list[Selection]:
        return [Selection.in_order(order) for order in self._orders(features, relevances, counts)]

    def _select_jointly(
        self, features: list[Tensor], relevances: list[Tensor], count: int, least: Sequence[int]
    ) -> list[Selection]:
        """Choose among the tokens of all pictures as if they were one; pictures with too few get their own first."""
        sizes = [len(rows) for rows in features]
        starts = [0, *itertools.accumulate(sizes)]
        (order,) = self._orders([torch.cat(features)], [torch.cat(relevances)], [count])

        def own_order(number: int) -> list[int]:
            (own,) = self._orders([features[number]], [relevances[number]], [least[number]])
            return [starts[number] + token for token in own.tolist()]

        chosen = selection.with_least(order.tolist(), sizes, least, own_order)
        return [
            Selection.in_order(
                torch.tensor([token - start for token in chosen if start <= token < end], device=order.device)
            )
            for start, end in itertools.pairwise(starts)
        ]

    def _orders(self, features: list[Tensor], relevances: list[Tensor], counts: Sequence[int]) -> list[Tensor]:
        """Return the chosen tokens of each picture in the order in which they are chosen."""
        longest = max(map(len, features))
        ragged = any(len(feature) < longest for feature in features)
        stack = partial(torch.nn.utils.rnn.pad_sequence, batch_first=True) if ragged else torch.stack
        valid = stack([feature.new_ones(len(feature), dtype=torch.bool) for feature in features]) if ragged else None
        orders = selection.greedy_select(
            stack(features),
            stack(relevances) if "relevance" in self.criteria else None,
            list(counts),
            valid=valid,
            use_relevance="relevance" in self.criteria,
            diversity_weight=self.alpha if "diversity" in self.criteria else 0.0,
            coverage_weight=self.lambda_ if "coverage" in self.criteria else 0.0,
            normalization=self.normalization,
        )
        return [order[:count] for order, count in zip(orders, counts, strict=True)]


def rater_relevance(text_attention: Tensor, raters: Raters) -> Tensor:
    """Return the relevance of each visual token: the mean attention from the raters (paper, section on stage II).

    Parameters
    ----------
    text_attention : float32 [num_text_tokens, n], one row for each text token after the image.
    raters : ``dynamic`` takes the rows whose total attention to the visual tokens exceeds the mean of all rows.

    Returns
    -------
    float32 [n]
    """
    if raters == "last":
        return text_attention[-1]
    if raters == "all":
        return text_attention.mean(dim=0)
    mass = text_attention.sum(dim=1)
    weights = (mass > mass.mean()).float()
    # When all rows attend alike, none is above the mean and all of them rate.
    weights = torch.where(weights.any(), weights, torch.ones_like(weights))
    return weights @ text_attention / weights.sum()
