"""Frames of videos in the LLaVA families: each is seen whole and pooled to fewer tokens, with newline tokens between.

What is known of patches (attention, keys, features) is pooled like the frames themselves.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from tops_engine.families.parts.seen_area import seen_area
from tops_engine.media.layout import VisualLayout, grid_boxes
from tops_engine.media.videos import Video

#: Where newline tokens stand: after each row of a frame, after each frame, after the video, or nowhere. The names are
#: those of ``mm_newline_position`` in LLaVA-Video's config.
Newlines = Literal["grid", "frame", "one_token", "no_token"]

Area = tuple[float, float, float, float]


@dataclass(frozen=True)
class PooledFrames:
    """How a model makes visual tokens of the frames of a video.

    Attributes
    ----------
    grid : rows and columns of a frame's tokens.
    pool : makes values of tokens of those of patches, [frames, patches, c] -> [frames, tokens, c].
    newlines : where newline tokens stand.
    before_projector : whether frames are pooled before the projector, or after it.
    pool_features : does the same with the features of patches, where it has weights; None if it is ``pool``.
    """

    grid: tuple[int, int]
    pool: Callable[[Tensor], Tensor]
    newlines: Newlines
    before_projector: bool = False
    pool_features: Callable[[Tensor], Tensor] | None = None

    def project(self, rows: Tensor, projector: Callable[[Tensor], Tensor], newline: Tensor) -> Tensor:
        """Make a video's visual tokens of its patch features: [frames, patches, c] and newline [d] -> [n, d]."""
        pool = self.pool_features or self.pool
        tokens = projector(pool(rows)) if self.before_projector else pool(projector(rows))
        return self._pack(tokens, newline)

    def arrange_features(self, rows: Tensor, newline: Tensor) -> Tensor:
        """Pool the features that feed the projector: [frames, patches, c] and newline [c] -> [n, c]."""
        return self._pack((self.pool_features or self.pool)(rows), newline)

    def arrange(self, values: Tensor, newline: Tensor) -> Tensor:
        """Pool values of patches and order them as tokens: [frames, patches, c] and newline [c] -> [n, c].

        Integers are the same all over a frame and stay integers.
        """
        if values.is_floating_point():
            return self._pack(self.pool(values), newline)
        return self._pack(self.pool(values.double()).round().to(values.dtype), newline)

    def layout(self, video: Video, frame_processor: Any) -> VisualLayout:
        """Return the layout of a video whose frames ``frame_processor`` resizes and crops."""
        return self.layout_of(len(video.frames), seen_area(video.size, frame_processor))

    def layout_of(self, num_frames: int, area: Area = (0.0, 0.0, 1.0, 1.0)) -> VisualLayout:
        """Return the layout of a video of which the model sees an area: left, top, right, bottom, as fractions."""
        boxes = grid_boxes(*self.grid, area)
        # A frame's number, from 1, goes with each of its boxes; newline tokens get an empty box and number 0.
        numbers = torch.arange(1.0, num_frames + 1)[:, None, None].expand(-1, len(boxes), 1)
        packed = self._pack(torch.cat([boxes.expand(num_frames, -1, -1), numbers], dim=-1), torch.zeros(5))
        view = torch.zeros(len(packed), dtype=torch.int64)
        return VisualLayout(packed[:, :4], view, (self.grid,), packed[:, 4].long() - 1)

    def _pack(self, tokens: Tensor, newline: Tensor) -> Tensor:
        """Add newlines: [frames, tokens, c] and newline [c] -> [n, c]."""
        if self.newlines == "grid":
            rows = tokens.reshape(len(tokens), *self.grid, -1)
            return torch.cat([rows, newline.expand(*rows.shape[:2], 1, -1)], dim=2).flatten(0, 2)
        if self.newlines == "frame":
            return torch.cat([tokens, newline.expand(len(tokens), 1, -1)], dim=1).flatten(0, 1)
        if self.newlines == "one_token":
            return torch.cat([tokens.flatten(0, 1), newline[None]])
        return tokens.flatten(0, 1)
