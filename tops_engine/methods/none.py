"""No pruning: the unchanged model."""

from tops_engine.budget import Keep, Stage
from tops_engine.methods.base import Method


class Unpruned(Method):
    """Keep every visual token, whatever the budget."""

    name = "none"
    source = "the model itself"

    def plan(self, num_visual_tokens: int, num_layers: int, keep: Keep) -> tuple[Stage, ...]:
        return (Stage(0, num_visual_tokens),)
