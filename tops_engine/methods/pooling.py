"""Spatial pooling: the uniform baseline of arXiv 2502.11501."""

from collections.abc import Sequence

from tops_engine import selection
from tops_engine.device.lazy import Tensor, torch
from tops_engine.errors import UnsupportedModel
from tops_engine.media.layout import VisualLayout
from tops_engine.methods.base import Method, Selection
from tops_engine.methods.tokens import VisualTokens


class Pooling(Method):
    """Average neighbouring tokens down to the budget, regardless of text and attention.

    Tokens are averaged after the projector. Each view of a picture, or frame of a video, gets its part of the budget
    and is pooled to a grid of exactly that many cells: 144 of 24 x 24 are windows of 2 x 2, 128 are 8 x 16 adaptive
    bins. If no grid of reasonable cells has that number (127 is prime), its rows differ by one cell. A mean takes the
    place of the token in the middle of its cell. Newline tokens are dropped, except as many as the budget exceeds the
    number of patches.
    """

    name = "pooling"
    needs_grids = True
    source = "baseline of arXiv 2502.11501"
    waits_for_device = True

    def select_visual(self, images: Sequence[VisualTokens], counts: Sequence[int]) -> list[Selection]:
        return [_pool(image, count) for image, count in zip(images, counts, strict=True)]

    def selection_flops(self, num_tokens: int, num_kept: int, feature_size: int) -> int:
        return num_tokens * feature_size


def _pool(image: VisualTokens, count: int) -> Selection:
    layout, features = image.layout, image.features
    grids = _grids(layout)
    num_patches = sum(len(tokens) for tokens, _ in grids)
    shares = selection.apportion(min(count, num_patches), [len(tokens) for tokens, _ in grids])
    places, means = [], []
    for (tokens, shape), share in zip(grids, shares, strict=True):
        if share:
            tokens = tokens.to(features.device)
            pooled, middles = selection.pool_grid(
                features[tokens].float().view(*shape, -1), selection.pooled_rows(*shape, share)
            )
            places.append(tokens[middles])
            means.append(pooled.to(features.dtype))
    newlines = (~layout.shows_picture).nonzero().flatten()[: max(count - num_patches, 0)].to(features.device)
    indices, order = torch.cat([*places, newlines]).sort()
    return Selection(indices, features=torch.cat([*means, features[newlines]])[order])


def _grids(layout: VisualLayout) -> list[tuple[Tensor, tuple[int, int]]]:
    """Return the patches of each view, or frame of a video, row by row (int64 on the CPU), and its rows and columns."""
    if layout.frame is None:
        members = [(layout.view == view, shape) for view, shape in enumerate(layout.grids)]
    else:
        frames = sorted({frame for frame in layout.frame.tolist() if frame >= 0})
        members = [(layout.frame == frame, layout.grids[0]) for frame in frames]
    return [(_raster(layout, member, shape), shape) for member, shape in members]


def _raster(layout: VisualLayout, member: Tensor, shape: tuple[int, int]) -> Tensor:
    tokens = (member & layout.shows_picture).nonzero().flatten()
    rows, columns = shape
    if len(tokens) != rows * columns:
        raise UnsupportedModel(
            f"Pooling needs a full grid, but a grid of {rows} x {columns} has {len(tokens)} tokens; use another method."
        )
    # Tiles may follow each other in the prompt, so the order of the tokens does not give the row; their places do.
    left, top = layout.boxes[tokens, 0].double(), layout.boxes[tokens, 1].double()
    return tokens[((top * 1e5).round() * 1e7 + left * 1e5).argsort(stable=True)]
