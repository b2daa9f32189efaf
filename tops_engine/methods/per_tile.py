"""What methods share that choose and merge within each tile of a picture, before the language model."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

from tops_engine import selection
from tops_engine.device.lazy import Tensor, torch
from tops_engine.methods.base import Method, Selection, VisualTokens


class TileChoice(NamedTuple):
    """What stays of a tile.

    Attributes
    ----------
    kept : int64, tokens that stay as they are, the most wanted first.
    places : int64 [m], further tokens that stay, with something else in their place.
    merged : [m, c], what to project into those places; None where m is 0.
    """

    kept: Tensor
    places: Tensor
    merged: Tensor | None = None


class PerTile(Method, register=False):
    """Each tile gets a part of the budget in proportion to its patches; a tile that may keep all of them is left alone.

    Newline tokens are dropped, except those that a budget beyond all patches has room for.
    """

    @abstractmethod
    def scores(self, image: VisualTokens) -> Tensor:
        """What the tokens of a picture are ranked by, [n]; computed once, for all tiles."""

    @abstractmethod
    def select_tile(self, image: VisualTokens, scores: Tensor, tokens: Tensor, num_keep: int) -> TileChoice:
        """Choose ``num_keep`` of ``tokens``, int64 ascending: those of one tile. There are more of them."""

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
