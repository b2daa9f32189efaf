"""Pictures that are cut into a grid of equal tiles, with the whole picture as one more tile after them."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from tops_engine.media.layout import VisualLayout, grid_boxes


def tiled_layout(rows: int, columns: int, side: int, whole: tuple[int, int] | None = None) -> VisualLayout:
    """Return the layout of ``rows`` x ``columns`` tiles in raster order and the whole picture after them.

    Parameters
    ----------
    rows, columns : of tiles. 0 and 0 if the picture is not cut.
    side : tokens along a side of each tile.
    whole : rows and columns of tokens of the whole picture; None if they are those of a tile.
    """
    whole = whole or (side, side)
    tiles = _tile_boxes(rows, columns, (side, side))
    boxes = torch.cat([*tiles, grid_boxes(*whole)])
    view = torch.ones(len(boxes), dtype=torch.int64)
    view[-whole[0] * whole[1] :] = 0
    grids = (whole, (rows * side, columns * side)) if tiles else (whole,)
    return VisualLayout(boxes, view, grids)


def overview_layout(whole: tuple[int, int], rows: int, columns: int, tile: tuple[int, int]) -> VisualLayout:
    """Return the layout of the whole picture and ``rows`` x ``columns`` tiles after it, in raster order.

    Parameters
    ----------
    whole, tile : rows and columns of tokens of the whole picture and of each tile.
    rows, columns : of tiles. 0 and 0 if the picture is not cut.
    """
    overview, tiles = grid_boxes(*whole), _tile_boxes(rows, columns, tile)
    boxes = torch.cat([overview, *tiles])
    view = torch.ones(len(boxes), dtype=torch.int64)
    view[: len(overview)] = 0
    return VisualLayout(boxes, view, (whole, (rows * tile[0], columns * tile[1])) if tiles else (whole,))


def _tile_boxes(rows: int, columns: int, tile: tuple[int, int]) -> list[Tensor]:
    """Return the boxes of the tokens of each tile."""
    return [
        grid_boxes(*tile, (column / columns, row / rows, (column + 1) / columns, (row + 1) / rows))
        for row in range(rows)
        for column in range(columns)
    ]


def block_means(patches: Tensor, block: int, grid: tuple[int, int] | None = None) -> Tensor:
    """Average each ``block`` x ``block`` patches of tiles: [tiles, patches, c] -> [tiles, tokens, c].

    ``grid`` is the rows and columns of patches of a tile; without it a tile is square.
    """
    rows, columns = grid or (math.isqrt(patches.shape[1]),) * 2
    maps = patches.transpose(1, 2).reshape(len(patches), -1, rows, columns)
    return F.avg_pool2d(maps, block).flatten(2).transpose(1, 2)
