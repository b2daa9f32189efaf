"""DART (arXiv 2502.11494): once inside the language model, the tokens least similar to a few pivot tokens."""

from collections.abc import Mapping, Sequence
from typing import ClassVar, Self

from pydantic import Field, model_validator

from tops_engine.budget import Keep, Preset, Stage, stages_inside
from tops_engine.device.lazy import F, Tensor, torch
from tops_engine.methods.base import Method, Selection
from tops_engine.methods.tokens import LayerTokens


class DART(Method):
    """Keep a few pivots of the image, and the tokens least similar to the pivots of image and text.

    Pivots are the tokens with the largest keys (L1 norm) in the layer before. Similarity is the cosine of hidden states
    after the model's last norm. Each pivot in turn chooses an equal share of the remaining budget.

    Differences from the official code: it keeps the image pivots in addition to the budget (132 tokens for 128), here
    they are part of it, and remainders go to the first pivots. It visits the pivots in the order of a Python set, here
    the order is that of their norms, image before text.
    """

    name = "dart"
    source = "arXiv 2502.11494"
    default_positions = "original"
    presets: ClassVar[Mapping[str, Preset]] = {
        f"dart/{budget}": Preset((Stage(2, 4 + budget // 8 * 8),), 32, 576, {"layer": 2}) for budget in (192, 128, 64)
    }

    layer: int = Field(default=2, ge=1, description="Prune at the input of this decoder layer.")
    image_pivots: int = Field(default=4, ge=0, description="Pivots among the visual tokens.")
    text_pivots: int = Field(default=4, ge=0, description="Pivots among the text tokens after the image.")

    @model_validator(mode="after")
    def _some_pivot(self) -> Self:
        if self.image_pivots + self.text_pivots == 0:
            raise ValueError("image_pivots=0 and text_pivots=0 leave nothing to compare with; use at least one pivot")
        return self

    def plan(self, num_visual_tokens: int, num_layers: int, keep: Keep) -> tuple[Stage, ...]:
        return stages_inside(keep, num_visual_tokens, num_layers, (self.layer,), (1.0,), option="layer")

    def select_at_layer(self, images: Sequence[LayerTokens], counts: Sequence[int]) -> list[Selection]:
        selections = []
        for image, count in zip(images, counts, strict=True):
            key_norms = image.previous_keys().float().norm(p=1, dim=1)
            order = unlike_pivots(
                image.normed_states(), key_norms, len(image.kept), count, self.image_pivots, self.text_pivots
            )
            selections.append(Selection.in_order(order))
        return selections

    def selection_flops(self, num_tokens: int, num_kept: int, feature_size: int) -> int:
        return 2 * (self.image_pivots + self.text_pivots) * num_tokens * feature_size


def unlike_pivots(
    states: Tensor, key_norms: Tensor, num_image: int, count: int, image_pivots: int, text_pivots: int
) -> Tensor:
    """Return ``count`` of the first ``num_image`` tokens.

    Parameters
    ----------
    states : [n, d], the tokens of the image, followed by those of the text.
    key_norms : float32 [n].

    Returns
    -------
    int64 [count], in the order in which they were chosen.
    """
    by_norm = key_norms[:num_image].argsort(descending=True, stable=True)
    chosen = by_norm[: min(image_pivots, count)]
    text = key_norms[num_image:].argsort(descending=True, stable=True)[:text_pivots] + num_image
    pivots = torch.cat([chosen, text])
    directions = F.normalize(states.float(), dim=1)
    similarity = directions[pivots] @ directions[:num_image].T
    taken = torch.zeros(num_image, dtype=torch.bool, device=states.device)
    taken[chosen] = True
    picks = [chosen]
    share, more = divmod(count - len(chosen), len(pivots))
    for number, row in enumerate(similarity):
        pick = row.masked_fill(taken, float("inf")).argsort(stable=True)[: share + (number < more)]
        taken[pick] = True
        picks.append(pick)
    return torch.cat(picks)
