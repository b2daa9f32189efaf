"""Run a vision tower on some of the tiles at a time, where memory does not hold all of them at once."""

from collections.abc import Callable

import torch
from torch import Tensor

from tops_engine.device.memory import give_back_memory, is_out_of_memory
from tops_engine.families.parts.vision_signals import calls_in_parts

#: The most tiles, pictures or frames that a tower reads at a time; None for all. Other sizes of a batch can round
#: differently, so that only a lack of memory divides it by default.
MAX_TILES: int | None = None


def in_parts(compute: Callable[[Tensor], Tensor], tiles: Tensor) -> Tensor:
    """Return what ``compute`` makes of tiles; on a lack of memory, of one half of them after the other, and so on.

    The calls that :func:`~tops_engine.families.parts.vision_signals.captured_calls` records are those of all tiles.
    The features and what methods may read of the tower are held for all tiles; the parts save what the layers need
    in between.

    Parameters
    ----------
    compute : [t, 3, height, width] -> [t, rows, c]; a tile does not change what it makes of another one.
    tiles : [t, 3, height, width].

    Raises
    ------
    torch.OutOfMemoryError
        If the memory does not hold a single tile.
    """
    size = min(len(tiles), MAX_TILES or len(tiles))
    while True:
        features = _attempt(compute, tiles, size)
        if features is not None:
            return features
        size = -(-size // 2)
        # After the except clause, because its error holds the tensors of the failed attempt.
        give_back_memory(tiles.device)


def _attempt(compute: Callable[[Tensor], Tensor], tiles: Tensor, size: int) -> Tensor | None:
    """Compute ``size`` tiles at a time; return None if the memory does not suffice and there are smaller parts."""
    try:
        if size == len(tiles):
            return compute(tiles)
        with calls_in_parts():
            return torch.cat([compute(part) for part in torch.split(tiles, size)])
    except RuntimeError as error:
        if size == 1 or not is_out_of_memory(error):
            raise
    return None
