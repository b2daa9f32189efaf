"""Divide a budget among the tiles of a picture, or among any groups of tokens."""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor


def apportion(total: int, sizes: Sequence[int]) -> list[int]:
    """Divide ``total`` in proportion to ``sizes`` by largest remainder, ties to the first; never above a size.

    Parameters
    ----------
    total : 0 to the sum of the sizes.
    """
    whole = max(sum(sizes), 1)
    shares = [total * size // whole for size in sizes]
    by_remainder = sorted(range(len(sizes)), key=lambda index: (-(total * sizes[index] % whole), index))
    for index in by_remainder[: total - sum(shares)]:
        shares[index] += 1
    return shares


class TileBudget(NamedTuple):
    """The ``tokens`` of one tile of a picture, int64 [n] ascending, and how many of them may be kept."""

    tokens: Tensor
    num_keep: int


def tile_budgets(tiles: Tensor, num_keep: int) -> tuple[list[TileBudget], Tensor]:
    """Divide a picture's budget among its tiles, in proportion to their tokens.

    Tokens that are not patches, such as newline tokens, are kept only if the budget exceeds the number of patches.

    Parameters
    ----------
    tiles : int64 [n], see :attr:`VisualTokens.tiles`.
    num_keep : 1 to n.

    Returns
    -------
    The budgets of the tiles that keep tokens, and the tokens kept that are not patches: int64, ascending.
    """
    numbers, counts = tiles[tiles > 0].unique(return_counts=True)  # type: ignore[no-untyped-call]
    num_patches = min(num_keep, int(counts.sum()))
    shares = apportion(num_patches, counts.tolist())
    budgets = [
        TileBudget((tiles == number).nonzero().flatten(), share)
        for number, share in zip(numbers, shares, strict=True)
        if share
    ]
    return budgets, (tiles == 0).nonzero().flatten()[: num_keep - num_patches]
