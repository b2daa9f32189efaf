"""PyramidDrop (arXiv 2410.17247): in steps inside the language model, by the attention of the prompt's last token."""

from collections.abc import Mapping, Sequence
from typing import ClassVar

from pydantic import Field, field_validator

from tops_engine.budget import Keep, Preset, Stage, at_same_depth, stages_inside
from tops_engine.methods.base import LayerTokens, Method, Selection


class PrunesInSteps(Method):
    """Base class of methods that prune inside, at several layers, each step keeping half of what the one before kept.

    The first step keeps what the budget leaves, so that the layer-average is met.
    """

    #: Layers of a model of 32, in proportion in others.
    default_layers: ClassVar[tuple[int, ...]] = ()

    layers: tuple[int, ...] | None = Field(
        default=None,
        description="Prune at the inputs of these decoder layers, separated by commas; unset: the method's own.",
    )

    @field_validator("layers", mode="before")
    @classmethod
    def _layers_as_text(cls, value: object) -> object:
        """``2,8,16`` or ``2+8+16``, for places where one types a text."""
        return value.replace(" ", "").replace("+", ",").split(",") if isinstance(value, str) else value

    @field_validator("layers")
    @classmethod
    def _growing(cls, value: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if value is not None and (not value or value[0] < 1 or list(value) != sorted(set(value))):
            raise ValueError("give growing layers from 1, such as 2,8,16")
        return value

    def plan(self, num_visual_tokens: int, num_layers: int, keep: Keep) -> tuple[Stage, ...]:
        layers = self.layers or at_same_depth(self.default_layers, 32, num_layers)
        sizes = [0.5**step for step in range(len(layers))]
        return stages_inside(keep, num_visual_tokens, num_layers, layers, sizes, option="layers")


class PyramidDrop(PrunesInSteps):
    """Keeps the tokens that the last token of the prompt attends to most, by the layer about to run, in three steps.

    The published steps, at layers 8, 16 and 24 of 32, cannot average less than a quarter of the tokens (their own
    halves average 47 %: preset ``pyramiddrop/paper``). Smaller budgets in the tables of other papers need earlier ones:
    by default 2, 8 and 16 of 32.
    """

    name = "pyramiddrop"
    source = "arXiv 2410.17247"
    default_layers = (2, 8, 16)
    presets: ClassVar[Mapping[str, Preset]] = {
        "pyramiddrop/paper": Preset(
            (Stage(8, 288), Stage(16, 144), Stage(24, 72)), 32, 576, {"layers": (8, 16, 24)}, proportional=True
        )
    }

    def select_at_layer(self, images: Sequence[LayerTokens], counts: Sequence[int]) -> list[Selection]:
        rows = [image.attention("last")[0] for image in images]
        return [Selection.highest(row, count) for row, count in zip(rows, counts, strict=True)]
