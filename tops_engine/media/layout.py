"""Where visual tokens lie: in the prompt (spans) and in the picture or video (layouts)."""

import functools
from dataclasses import dataclass

from tops_engine.device.lazy import Tensor, torch
from tops_engine.errors import UnsupportedModel


@dataclass(frozen=True)
class VisualLayout:
    """Where each of one picture's, or one video's, n visual tokens lies.

    Attributes
    ----------
    boxes : float32 [n, 4] on the CPU: left, top, right, bottom as fractions of the original picture or frame. A token
        that shows no part of it (a newline token) has an empty box, all zeros.
    view : int64 [n] on the CPU: which rendering of the picture the token belongs to (0 the overview, 1 the tiles).
        All 0 for a video.
    grids : (rows, columns) of each view; of each frame of a video.
    frame : for a video, int64 [n] on the CPU: which of its frames the token shows, the first of them where a token
        shows several; -1 for a token that belongs to no frame. None for a picture.
    """

    boxes: Tensor
    view: Tensor
    grids: tuple[tuple[int, int], ...]
    frame: Tensor | None = None

    @property
    def num_tokens(self) -> int:
        return self.boxes.shape[0]

    @property
    def shows_picture(self) -> Tensor:
        """bool [n] on the CPU: False for newline tokens and the like."""
        return (self.boxes != 0).any(dim=1)

    def part(self, tokens: Tensor) -> "VisualLayout":
        """Return the layout of some of the tokens, int64 [k] on the CPU. They may leave holes in the grids."""
        frame = None if self.frame is None else self.frame[tokens]
        return VisualLayout(self.boxes[tokens], self.view[tokens], self.grids, frame)

    @property
    def frame_tokens(self) -> Tensor:
        """The tokens of each frame that show part of it, row by row: int64 [num_frames, tokens of a frame] on the CPU.

        Tokens in the same column show the same place. A picture is one frame of all its tokens that show part of it.

        Raises
        ------
        UnsupportedModel
            If frames have different numbers of tokens.
        """
        shown = self.shows_picture.nonzero().flatten()
        if self.frame is None:
            return shown[None]
        order = self.frame[shown].argsort(stable=True)
        counts = self.frame[shown].bincount()
        sizes = set(counts[counts > 0].tolist())
        if len(sizes) > 1:
            raise UnsupportedModel("This model gives the frames of a video different numbers of tokens.")
        return shown[order].view(-1, *sizes)


@dataclass(frozen=True)
class VisualSpan:
    """Which prompt positions hold one picture or video.

    Attributes
    ----------
    positions : int64 [n], ascending indices into the prompt's tokens.
    layout : the n tokens' places in the picture or video.
    """

    positions: Tensor
    layout: VisualLayout


def frame_layout(num_frames: int, boxes: Tensor, grid: tuple[int, int], frame_step: int = 1) -> VisualLayout:
    """Return the layout of a video of which each frame has the tokens of ``boxes`` [k, 4], frame after frame.

    ``frame_step``: how many frames a token shows.
    """
    frame = (frame_step * torch.arange(num_frames)).repeat_interleave(len(boxes))
    return VisualLayout(boxes.repeat(num_frames, 1), torch.zeros_like(frame), (grid,), frame)


@functools.lru_cache(maxsize=64)
def grid_boxes(rows: int, columns: int, area: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)) -> Tensor:
    """Return the grid boxes, in raster order, of ``area`` (left, top, right, bottom): float32 [rows * columns, 4].

    The result is shared and must not be changed in place.
    """
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


def newline_layout(
    side: int, newlines: Tensor, area: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)
) -> VisualLayout:
    """Return the layout of an overview of ``side`` x ``side`` patches, then of tiles that cover ``area``, row by row.

    Parameters
    ----------
    newlines : bool [n] on the CPU, of the tokens behind the overview: which of them end a row.
    """
    base = grid_boxes(side, side)
    rows = int(newlines.sum())
    columns = (len(newlines) - rows) // max(rows, 1)
    boxes = torch.zeros(len(newlines), 4)
    boxes[~newlines] = grid_boxes(rows, columns, area)
    view = torch.cat([torch.zeros(len(base)), torch.ones(len(newlines))]).long()
    return VisualLayout(torch.cat([base, boxes]), view, ((side, side), (rows, columns)))
