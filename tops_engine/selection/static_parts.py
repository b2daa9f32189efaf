"""Parts of a video that do not change: windows of frames, and how many tokens are left when each is kept once."""

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
from torch import Tensor


class Window(NamedTuple):
    """Consecutive frames [start, end), and which places do not change in them: bool [n]."""

    start: int
    end: int
    static: Tensor


def static_windows(similarity: Tensor, threshold: float) -> list[Window]:
    """Cut a video into windows so that keeping unchanged places once saves most tokens (HoliTom, arXiv 2505.21334).

    A place is static in a window if its similarity to the next frame exceeds the threshold in all of the window. Of
    equal savings shorter windows win.

    Parameters
    ----------
    similarity : float [num_frames - 1, n], of each place to the same place in the next frame.

    Returns
    -------
    The windows in their order, which cover all frames.
    """
    unchanged = similarity > threshold
    saving = _savings(unchanged.cpu().numpy())
    num_frames = len(saving)
    best, starts = np.zeros(num_frames + 1), []
    for last in range(num_frames):
        # The window of this frame alone first, then longer ones.
        totals = best[: last + 1][::-1] + saving[: last + 1, last][::-1]
        choice = int(totals.argmax())
        starts.append(last - choice)
        best[last + 1] = totals[choice]
    windows: list[Window] = []
    end = num_frames
    while end:
        start = starts[end - 1]
        alone = end - start == 1
        static = unchanged.new_zeros(unchanged.shape[1]) if alone else unchanged[start : end - 1].all(dim=0)
        windows.append(Window(start, end, static))
        end = start
    return windows[::-1]


def _savings(unchanged: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """Return how many tokens each window saves: [num_frames, num_frames] by first and last frame."""
    num_changes, size = unchanged.shape
    saving = np.zeros((num_changes + 1, num_changes + 1))
    # How many frames after this one each place stays unchanged.
    run = np.zeros(size, dtype=np.int64)
    for start in range(num_changes - 1, -1, -1):
        run = np.where(unchanged[start], run + 1, 0)
        at_least = np.bincount(run, minlength=num_changes + 1)[::-1].cumsum()[::-1]
        lengths = np.arange(1, num_changes - start + 1)
        saving[start, start + 1 :] = at_least[lengths] * lengths
    return saving


def num_left(windows: list[Window], size: int) -> int:
    """Return how many tokens are left when a static place is kept once in its window; ``size``: of a frame."""
    return sum((w.end - w.start) * size - (w.end - w.start - 1) * int(w.static.sum()) for w in windows)


Parts = TypeVar("Parts")


def lowest_threshold(
    parts_at: Callable[[float], Parts], left: Callable[[Parts], int], threshold: float, least: int
) -> Parts:
    """Return the parts at a threshold, raised as far as it takes to leave ``least`` tokens.

    Parameters
    ----------
    parts_at : computes the static parts at a threshold of cosine similarity; a higher one leaves more tokens.
    left : returns how many tokens parts leave.
    """
    parts = parts_at(threshold)
    if left(parts) >= least:
        return parts
    low, high = threshold, 2.0
    parts = parts_at(high)
    for _ in range(24):
        middle = (low + high) / 2
        tried = parts_at(middle)
        low, high, parts = (low, middle, tried) if left(tried) >= least else (middle, high, parts)
    return parts
