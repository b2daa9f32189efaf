"""Spatial pooling: the uniform baseline of arXiv 2502.11501."""

from collections.abc import Sequence

import torch

from tops_engine.budget import Keep, Stage, stages_for
from tops_engine.errors import UnsupportedModel
from tops_engine.layout import VisualLayout
from tops_engine.methods.base import Method, Selection, VisualTokens
from tops_engine.selection import apportion, pool_grid, pooled_rows


class Pooling(Method):
    """Averages neighbouring tokens, after the projector, down to the budget; looks at neither text nor attention.

    Each view of a picture gets its part of the budget and is pooled to a grid of exactly that many cells: 144 of
    24 x 24 are windows of 2 x 2, 128 are 8 x 16 adaptive bins. Where no grid of reasonable cells has that number (127
    is prime), its rows differ by one cell. A mean takes the place of the token in its cell's middle. Newline tokens are
    dropped, except those that a budget beyond all patches has room for.
    """

    name = "pooling"
    source = "baseline of arXiv 2502.11501"

    def plan(self, num_visual_tokens: int, num_layers: int, keep: Keep) -> tuple[Stage, ...]:
        return stages_for(keep, num_visual_tokens, num_layers, shape=((0.0, 1.0),))

    def select_visual(self, images: Sequence[VisualTokens], counts: Sequence[int]) -> list[Selection]:
        return [_pool(image, count) for image, count in zip(images, counts, strict=True)]

    def selection_flops(self, num_tokens: int, num_kept: int, feature_size: int) -> int:
        return num_tokens * feature_size


def _pool(image: VisualTokens, count: int) -> Selection:
    layout, features = image.layout, image.features
    views = [_raster(layout, view).to(features.device) for view in range(len(layout.grids))]
    num_patches = sum(len(view) for view in views)
    places, means = [], []
    for view, grid, share in zip(
        views, layout.grids, apportion(min(count, num_patches), [len(view) for view in views]), strict=True
    ):
        if share:
            pooled, middles = pool_grid(features[view].float().view(*grid, -1), pooled_rows(*grid, share))
            places.append(view[middles])
            means.append(pooled.to(features.dtype))
    newlines = (~layout.shows_picture).nonzero().flatten()[: max(count - num_patches, 0)].to(features.device)
    indices, order = torch.cat([*places, newlines]).sort()
    return Selection(indices, features=torch.cat([*means, features[newlines]])[order])


def _raster(layout: VisualLayout, view: int) -> torch.Tensor:
    """The patches of a view, row by row: int64 [rows * columns] on the CPU."""
    tokens = ((layout.view == view) & layout.shows_picture).nonzero().flatten()
    rows, columns = layout.grids[view]
    if len(tokens) != rows * columns:
        raise UnsupportedModel(
            f"Pooling needs a full grid, and a view of {rows} x {columns} has {len(tokens)} tokens; use another method."
        )
    # Tiles may follow each other in the prompt; the places in the picture tell the row.
    left, top = layout.boxes[tokens, 0].double(), layout.boxes[tokens, 1].double()
    return tokens[((top * 1e5).round() * 1e7 + left * 1e5).argsort(stable=True)]
