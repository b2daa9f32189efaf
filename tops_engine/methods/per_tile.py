"""The base class of methods that choose and merge within each tile of a picture, before the language model."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

from tops_engine import selection
from tops_engine.device.lazy import Tensor, torch
from tops_engine.methods.base import Method, Selection
from tops_engine.methods.tokens import VisualTokens


class TileChoice(NamedTuple):
    """The tokens of a tile that stay.

    Attributes
    ----------
    kept : int64, the tokens that stay unchanged, in the order in which they were chosen.
    places : int64 [m], further tokens that stay, with other features in their place.
    merged : [m, c], the features to project into those places; None if m is 0.
    """

    kept: Tensor
    places: Tensor
    merged: Tensor | None = None


class PerTile(Method, register=False):
    """Base class of methods that give each tile a part of the budget in proportion to its patches.

    A tile whose budget covers all of its patches stays unchanged. Newline tokens are dropped, except as many as the
    budget exceeds the number of patches.
    """

    @abstractmethod
    def scores(self, image: VisualTokens) -> Tensor:
        """Return the scores that rank the tokens of a picture, [n]; computed once for all tiles."""

    @abstractmethod
    def select_tile(self, image: VisualTokens, scores: Tensor, tokens: Tensor, num_keep: int) -> TileChoice:
        """Return ``num_keep`` of the tokens of one tile, int64 in ascending order, of which there are more."""

    def select_visual(self, images: Sequence[VisualTokens], counts: Sequence[int]) -> list[Selection]:
        return [self._select(image, count) for image, count in zip(images, counts, strict=True)]

    def _select(self, image: VisualTokens, count: int) -> Selection:
        budgets, rest = selection.tile_budgets(image.tiles(), count)
        scores = self.scores(image)
        choices = [
            self.select_tile(image, scores, tokens, num_keep)
            if num_keep < len(tokens)
            else TileChoice(tokens, tokens[:0])
            for tokens, num_keep in budgets
        ]
        order = torch.cat([torch.cat([choice.kept, choice.places]) for choice in choices] + [rest])
        merged = [choice.merged for choice in choices if choice.merged is not None]
        if not merged:
            return Selection.in_order(order)
        features = image.features.clone()
        places = torch.cat([choice.places for choice in choices])
        projected = image.project(torch.cat(merged).to(image.encoder_features().dtype))
        features[places] = projected.to(features.dtype)
        indices = order.sort().values
        return Selection(indices, features=features[indices])
