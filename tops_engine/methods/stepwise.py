"""The base class of methods that prune in several steps inside the language model."""

from typing import ClassVar

from pydantic import Field, field_validator

from tops_engine.budget import Keep, Stage, at_same_depth, stages_inside
from tops_engine.methods.base import Method


class Stepwise(Method, register=False):
    """Base class of methods that prune at several layers, where by default each step halves the tokens.

    The first step keeps as many tokens as the budget allows, so that the layer-average is met.

    Attributes
    ----------
    default_layers : the layers of a model with 32 layers; models with another number prune at the same depth.
    """

    default_layers: ClassVar[tuple[int, ...]] = ()

    layers: tuple[int, ...] | None = Field(
        default=None,
        description="Prune at the inputs of these decoder layers, separated by commas; unset takes the method's own.",
    )

    @field_validator("layers", mode="before")
    @classmethod
    def _layers_as_text(cls, value: object) -> object:
        """Read ``2,8,16`` or ``2+8+16``, which users type."""
        return value.replace(" ", "").replace("+", ",").split(",") if isinstance(value, str) else value

    @field_validator("layers")
    @classmethod
    def _check_ascending(cls, value: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if value is not None and (not value or value[0] < 1 or list(value) != sorted(set(value))):
            raise ValueError("give layers in ascending order from 1, such as 2,8,16")
        return value

    def step_layers(self, num_layers: int) -> tuple[int, ...]:
        """Return the layers at whose inputs tokens are dropped, of a model with ``num_layers`` layers."""
        return self.layers or at_same_depth(self.default_layers, 32, num_layers)

    def sizes(self, num_steps: int) -> list[float]:
        """Return the relative numbers of tokens that the steps keep."""
        return [0.5**step for step in range(num_steps)]

    def plan(self, num_visual_tokens: int, num_layers: int, keep: Keep) -> tuple[Stage, ...]:
        layers = self.step_layers(num_layers)
        return stages_inside(keep, num_visual_tokens, num_layers, layers, self.sizes(len(layers)), option="layers")
