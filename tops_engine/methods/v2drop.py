"""V2Drop (arXiv 2509.01552): inside the language model, by how much its layers change a token."""

from collections.abc import Mapping, Sequence
from typing import ClassVar

from tops_engine.budget import Preset, Stage
from tops_engine.methods.base import Selection
from tops_engine.methods.stepwise import Stepwise
from tops_engine.methods.tokens import LayerTokens


class V2Drop(Stepwise):
    """Keep, in three steps, the tokens that the layer before changed most.

    The change is the length of the difference of a token's hidden states before and after the layer. The steps are at
    layers 3, 17 and 22 of 32, as in the official code for LLaVA-1.5. It keeps a half at each of the first two and a
    single token from the third on, which is the preset ``v2drop/llava-1.5``; for a budget each step keeps half of the
    tokens of the step before.
    """

    name = "v2drop"
    source = "arXiv 2509.01552"
    default_positions = "original"
    default_layers = (3, 17, 22)
    presets: ClassVar[Mapping[str, Preset]] = {
        "v2drop/llava-1.5": Preset((Stage(3, 288), Stage(17, 144), Stage(22, 1)), 32, 576, {"layers": (3, 17, 22)}),
    }

    def select_at_layer(self, images: Sequence[LayerTokens], counts: Sequence[int]) -> list[Selection]:
        changes = [(image.hidden_states - image.previous_states()).float().norm(dim=-1) for image in images]
        return [Selection.highest(change, count) for change, count in zip(changes, counts, strict=True)]

    def selection_flops(self, num_tokens: int, num_kept: int, feature_size: int) -> int:
        return 3 * num_tokens * feature_size
