"""PyramidDrop (arXiv 2410.17247): in steps inside the language model, by the attention of the last token."""

from collections.abc import Mapping, Sequence
from typing import ClassVar

from tops_engine.budget import Preset, Stage
from tops_engine.methods.base import Selection
from tops_engine.methods.stepwise import Stepwise
from tops_engine.methods.tokens import LayerTokens


class PyramidDrop(Stepwise):
    """Keep, in three steps, the tokens with the most attention from the last token of the prompt, in the next layer.

    The published steps, at layers 8, 16 and 24 of 32, cannot average less than a quarter of the tokens (their own
    halves average 47 %: preset ``pyramiddrop/paper``). Smaller budgets in the tables of other papers need earlier
    steps. The default steps are at layers 2, 8 and 16 of 32.
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
