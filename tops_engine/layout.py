"""Where visual tokens lie: in the prompt (spans) and in the picture (layouts)."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class VisualLayout:
    """Where each of one image's n visual tokens lies in the picture.

    Attributes
    ----------
    boxes : float32 [n, 4] on the CPU: left, top, right, bottom as fractions of the original image. A token that shows
        no part of the picture (a newline token) has an empty box, all zeros.
    view : int64 [n] on the CPU: which rendering of the picture the token belongs to (0 the overview, 1 the tiles).
    grids : (rows, columns) of each view.
    """

    boxes: Tensor
    view: Tensor
    grids: tuple[tuple[int, int], ...]

    @property
    def num_tokens(self) -> int:
        return self.boxes.shape[0]


@dataclass(frozen=True)
class VisualSpan:
    """Which prompt positions hold one image.

    Attributes
    ----------
    positions : int64 [n], ascending indices into the prompt's tokens.
    layout : the n tokens' places in the picture.
    """

    positions: Tensor
    layout: VisualLayout


def grid_boxes(rows: int, columns: int, area: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)) -> Tensor:
    """Boxes of a raster-order grid that covers ``area`` (left, top, right, bottom): float32 [rows * columns, 4]."""
    left, top, right, bottom = area
    xs = torch.linspace(left, right, columns + 1)
    ys = torch.linspace(top, bottom, rows + 1)
    return torch.stack(
        [
            xs[:-1].expand(rows, columns),
            ys[:-1, None].expand(rows, columns),
            xs[1:].expand(rows, columns),
            ys[1:, None].expand(rows, columns),
        ],
        dim=-1,
    ).reshape(rows * columns, 4)
