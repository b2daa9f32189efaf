"""The base class of methods that prune before the language model and once more between its layers."""

from typing import Any, ClassVar, Literal

from pydantic import Field

from tops_engine.budget import Keep, Stage, at_same_depth, stages_for, stages_inside
from tops_engine.methods.base import Method

#: The layer, of 32, of a second stage without a first.
SECOND_STAGE_ALONE = 2


class TwoStage(Method, register=False):
    """Base class of methods with two stages, of which each can be left out.

    Alone, the second stage is at layer 2 of 32 instead, where it can meet small budgets.

    Attributes
    ----------
    second_stage : where the second stage starts, as a fraction of the layers, and the share of the tokens of the first
        stage that it keeps.
    """

    first_stage_options: ClassVar[dict[str, Any]] = {"stages": "first"}
    second_stage_options: ClassVar[dict[str, Any]] = {"stages": "second"}
    second_stage: ClassVar[tuple[float, float]]

    stages: Literal["both", "first", "second"] = Field(
        default="both",
        description="Prune at both stages, only before the language model (first) or only between its layers (second).",
    )

    @property
    def prunes_before_the_llm(self) -> bool:
        return self.stages != "second"

    @property
    def prunes_between_layers(self) -> bool:
        return self.stages != "first"

    def plan(self, num_visual_tokens: int, num_layers: int, keep: Keep) -> tuple[Stage, ...]:
        depth, share = self.second_stage
        if self.stages == "first":
            return super().plan(num_visual_tokens, num_layers, keep)
        if self.stages == "second":
            layers = at_same_depth((SECOND_STAGE_ALONE,), 32, num_layers)
            return stages_inside(keep, num_visual_tokens, num_layers, layers, (1.0,), option="schedule")
        return stages_for(keep, num_visual_tokens, num_layers, shape=((0.0, 1.0), (depth, share)))
