"""FitPrune (arXiv 2409.10197): some tokens in every layer of the language model, by a recipe fitted in advance."""

import itertools
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from pydantic import Field

from tops_engine.budget import Keep, Preset, Stage, stages_along
from tops_engine.errors import InvalidInput, shorten
from tops_engine.methods.base import Method, Selection
from tops_engine.methods.recipe import Recipe
from tops_engine.methods.tokens import LayerTokens

# How many of 576 tokens the published recipe for LLaVA-1.5-7B and 60 % fewer FLOPs deletes in each of 32 layers.
# fmt: off
PUBLISHED = (
    14, 33, 89, 36, 36, 20, 55, 21, 18, 4, 7, 5, 2, 5, 7, 4,
    26, 5, 11, 24, 4, 18, 2, 1, 0, 0, 1, 0, 1, 0, 0, 0,
)
# fmt: on
REMAINING = tuple(576 - sum(PUBLISHED[:layer]) for layer in range(32))


class FitPrune(Method):
    """Drop after each layer the tokens with the least attention from text and image in it, as many as a recipe says.

    The score is the product of two sums over attention rows, each the largest over heads: the rows of the text after
    the image, and the rows of the image's own tokens. Only later rows attend to a token, so the second sum prefers the
    top of a picture; that is part of the published rule.

    ``tops calibrate`` fits a recipe to a model. A recipe brings the budget that it was fitted to; its fractions are
    raised to a common power to meet another ``keep``. Without a recipe the published one for LLaVA-1.5-7B is stretched
    over the layers and fitted to ``keep`` in the same way. The official code skips the feed-forward part of the layer
    for deleted tokens; here they are dropped before the next layer, with the same result for the other tokens.
    """

    name = "fitprune"
    source = "arXiv 2409.10197"
    default_positions = "original"
    presets: ClassVar[Mapping[str, Preset]] = {
        "fitprune/60": Preset(
            tuple(
                Stage(layer + 1, after)
                for layer, (before, after) in enumerate(itertools.pairwise(REMAINING))
                if after < before
            ),
            32,
            576,
            proportional=True,
        )
    }

    recipe: Recipe | None = Field(
        default=None,
        description="Recipe file that `tops calibrate` wrote; unset takes the recipe published for LLaVA-1.5-7B.",
    )

    def check_model(self, model: str) -> None:
        # The same model has other names in a folder or after fine-tuning, so another name is no error.
        if self.recipe is not None and Path(self.recipe.model).name != Path(model).name:
            warnings.warn(
                f"The recipe was fitted to {shorten(self.recipe.model)}; for {shorten(model)} it may not be the best "
                "one.",
                stacklevel=2,
            )

    def plan(self, num_visual_tokens: int, num_layers: int, keep: Keep) -> tuple[Stage, ...]:
        if self.recipe is not None and self.recipe.num_layers != num_layers:
            raise InvalidInput(
                f"The recipe was fitted to {shorten(self.recipe.model)}, which has {self.recipe.num_layers} layers, "
                f"and this model has {num_layers}; fit one to it with `tops calibrate`."
            )
        remaining = self.recipe.remaining if self.recipe else published_curve(num_layers)
        return stages_along(keep, num_visual_tokens, num_layers, remaining)

    def select_at_layer(self, images: Sequence[LayerTokens], counts: Sequence[int]) -> list[Selection]:
        selections = []
        for image, count in zip(images, counts, strict=True):
            from_text = image.attention("text", layer="previous", heads="max").sum(dim=0)
            from_image = image.attention("image", layer="previous", heads="max").mean(dim=0)
            selections.append(Selection.highest(from_text * from_image, count))
        return selections


def published_curve(num_layers: int) -> list[float]:
    """Return the fraction of tokens that each of ``num_layers`` layers sees by the published recipe, at equal depth."""
    curve = []
    for layer in range(num_layers):
        depth = layer * 32 / num_layers
        before, after = REMAINING[int(depth)], REMAINING[min(int(depth) + 1, 31)]
        curve.append((before + (depth - int(depth)) * (after - before)) / 576)
    return curve
