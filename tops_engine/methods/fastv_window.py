"""WindowFastV (arXiv 2502.11501): the score of FastV, with the budget spread evenly over the picture."""

import math

from pydantic import Field

from tops_engine.device.lazy import Tensor, torch
from tops_engine.media.layout import VisualLayout
from tops_engine.methods.base import Selection
from tops_engine.methods.fastv import FastV
from tops_engine.methods.tokens import LayerTokens


class FastVWindow(FastV):
    """Keep the same share of the tokens of each window of the picture, those with the highest score of FastV.

    The places that whole shares leave go to the windows whose next token has the highest score, one each. Every view of
    a tiled picture has its own windows. A newline token belongs to the window at the end of its row. The paper has no
    public code and does not state the size of a window.
    """

    name = "fastv_window"
    source = "arXiv 2502.11501"
    waits_for_device = True

    window: int = Field(default=4, ge=1, description="Side of a window, in tokens.")

    def choose(self, attention: Tensor, image: LayerTokens, count: int) -> Selection:
        windows = window_of_token(image.layout, self.window).to(attention.device)[image.kept]
        return best_of_windows(attention, windows, count)


def window_of_token(layout: VisualLayout, side: int) -> Tensor:
    """Return the window of each token: int64 [n] on the CPU.

    Windows are ``side`` x ``side`` tokens and are numbered row by row, view by view or frame by frame.
    """
    windows = torch.zeros(layout.num_tokens, dtype=torch.int64)
    # A newline that belongs to no frame counts with the frame before it.
    parts = layout.view if layout.frame is None else layout.frame.cummax(0).values
    first = 0
    for part in sorted(set(parts.tolist())):
        rows, columns = layout.grids[part if layout.frame is None else 0]
        tokens = (parts == part).nonzero().flatten()
        is_patch = layout.boxes[tokens].any(dim=1)
        # A token that is no patch (a newline) counts with the patch before it.
        place = (is_patch.cumsum(0) - 1).clamp(min=0)
        across = math.ceil(columns / side)
        windows[tokens] = first + place // columns // side * across + place % columns // side
        first += math.ceil(rows / side) * across
    return windows


def best_of_windows(scores: Tensor, windows: Tensor, count: int) -> Selection:
    """Return the highest scores of each window, ``count`` in total, with the same share of each window.

    Parameters
    ----------
    scores : float32 [n]
    windows : int64 [n], the window of each token, numbered from 0.
    """
    sizes = windows.bincount()
    quotas = count * sizes // len(scores)
    by_score = scores.argsort(descending=True, stable=True)
    by_window = by_score[windows[by_score].argsort(stable=True)]
    ends = sizes.cumsum(0)
    rank = torch.empty_like(windows)
    rank[by_window] = torch.arange(len(scores), device=scores.device) - (ends - sizes)[windows[by_window]]
    chosen = rank < quotas[windows]
    next_best = by_score[(rank == quotas[windows])[by_score]]
    chosen[next_best[: count - int(chosen.sum())]] = True
    order = by_score[chosen[by_score]]
    return Selection.in_order(order)
