"""TransPrune (arXiv 2507.20630): by how layers change a token and how much the text attends to it."""

from collections.abc import Mapping, Sequence
from typing import ClassVar

from tops_engine.budget import Preset, Stage
from tops_engine.device.lazy import Tensor
from tops_engine.methods.base import Selection
from tops_engine.methods.stepwise import Stepwise
from tops_engine.methods.tokens import LayerTokens


class TransPrune(Stepwise):
    """Keep, in three steps, the tokens that layers change most and that the text attends to most.

    Both scores are divided by their sums over the tokens, and added. The change of a token in the attention and in the
    feed-forward part of a layer is the ratio of the lengths of output and input, times the exponential of one minus
    their cosine; it is accumulated from the layer before the first step on. Attention is the mean over heads and over
    the text after the image, in the next layer.

    The steps are at layers 7, 9 and 12 of 32 and keep 504, 360 and 72 of 576 tokens, as in the official scripts for
    LLaVA (preset ``transprune/llava``); for a budget they keep tokens in the same proportion. The layers before the
    first step see all tokens, so that 22 % is the least budget; smaller ones need earlier steps (``layers``) or another
    method before the language model, which the paper tries too (``visionzip+transprune``).
    """

    name = "transprune"
    source = "arXiv 2507.20630"
    default_layers = (7, 9, 12)
    presets: ClassVar[Mapping[str, Preset]] = {
        "transprune/llava": Preset(
            (Stage(7, 504), Stage(9, 360), Stage(12, 72)), 32, 576, {"layers": (7, 9, 12)}, proportional=True
        )
    }

    def sizes(self, num_steps: int) -> list[float]:
        return [0.875, 0.625, 0.125] if num_steps == 3 else super().sizes(num_steps)

    def watched_layers(self, num_layers: int) -> range:
        layers = self.step_layers(num_layers)
        return range(layers[0] - 1, layers[-1])

    def select_at_layer(self, images: Sequence[LayerTokens], counts: Sequence[int]) -> list[Selection]:
        return [Selection.highest(_score(image), count) for image, count in zip(images, counts, strict=True)]

    def selection_flops(self, num_tokens: int, num_kept: int, feature_size: int) -> int:
        # Two lengths and a product for each of the two parts of the layers between two steps, three at most.
        return 3 * 2 * 6 * num_tokens * feature_size


def _score(image: LayerTokens) -> Tensor:
    changes, attention = image.transitions(), image.attention("text").mean(dim=0)
    return changes / changes.sum() + attention / attention.sum()
