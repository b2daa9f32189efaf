"""FastV (arXiv 2403.06764): once, early inside the language model, by the attention of the last token."""

from collections.abc import Mapping, Sequence
from typing import ClassVar

from pydantic import Field

from tops_engine.budget import Keep, Preset, Stage, stages_inside
from tops_engine.device.lazy import Tensor
from tops_engine.methods.base import Method, Selection
from tops_engine.methods.tokens import LayerTokens


class FastV(Method):
    """Keep the tokens with the most attention from the last token of the prompt, in the layer before.

    As in the official port with a cache, tokens are chosen once and keep their original positions. The budget is a
    layer-average: since the first layers see all tokens, fewer tokens remain afterwards.
    """

    name = "fastv"
    source = "arXiv 2403.06764"
    default_positions = "original"
    # Layer and share dropped: default of the code, table of the paper, and the demo.
    presets: ClassVar[Mapping[str, Preset]] = {
        "fastv/k2-r50": Preset((Stage(2, 288),), 32, 576, {"layer": 2}, proportional=True, rounds=True),
        "fastv/k3-r50": Preset((Stage(3, 288),), 32, 576, {"layer": 3}, proportional=True, rounds=True),
        "fastv/k3-r75": Preset((Stage(3, 144),), 32, 576, {"layer": 3}, proportional=True, rounds=True),
    }

    layer: int = Field(default=2, ge=1, description="Prune at the input of this decoder layer.")

    def plan(self, num_visual_tokens: int, num_layers: int, keep: Keep) -> tuple[Stage, ...]:
        return stages_inside(keep, num_visual_tokens, num_layers, (self.layer,), (1.0,), option="layer")

    def select_at_layer(self, images: Sequence[LayerTokens], counts: Sequence[int]) -> list[Selection]:
        rows = [image.attention("last", layer="previous")[0] for image in images]
        return [self.choose(row, image, count) for row, image, count in zip(rows, images, counts, strict=True)]

    def choose(self, attention: Tensor, image: LayerTokens, count: int) -> Selection:
        """Return ``count`` of the n tokens that an image still has, by the attention that they get: float32 [n]."""
        return Selection.highest(attention, count)
