"""Positions of kept tokens: coordinates that are stored with the tokens, and positions of a pruned prompt.

Qwen-VL gives a picture's tokens positions by row and column, counted from the start position of the picture. The text
after the picture continues from its longer side. Dropping tokens changes neither. vLLM computes the positions of a
prompt when it arrives, before the vision tower has run; only the positions of text and the start position of each
picture are known then.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

#: The number of columns that :func:`pack` adds to a token.
NUM_COORDINATES = 4

# Half precision (bfloat16: 8 bits) holds each digit below this base exactly.
BASE = 256


class Kept(NamedTuple):
    """A picture in the unpruned prompt: the start of its tokens, their number, and the number of kept ones."""

    start: int
    num_tokens: int
    num_kept: int


def pack(tokens: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Join tokens ``[k, d]`` with their rows and columns, int64 ``[k]``, as ``[k, d + NUM_COORDINATES]``."""
    places = torch.stack([rows, columns], dim=1).to(tokens.device)
    digits = torch.stack([places // BASE, places % BASE], dim=2).flatten(1)
    return torch.cat([tokens, digits.to(tokens.dtype)], dim=1)


def unpack(packed: Tensor) -> tuple[Tensor, Tensor]:
    """Split what :func:`pack` joined into tokens ``[k, d]`` and rows and columns, int64 ``[2, k]``."""
    digits = packed[:, -NUM_COORDINATES:].long().reshape(-1, 2, 2)
    return packed[:, :-NUM_COORDINATES], (digits[..., 0] * BASE + digits[..., 1]).T


def pruned_positions(positions: Tensor, pictures: Sequence[Kept]) -> tuple[Tensor, int]:
    """Compute the positions of a pruned prompt from those of the unpruned prompt.

    Args:
        positions: Positions of the unpruned prompt, int64 ``[3, n]``.
        pictures: In the order of the prompt.

    Returns:
        Positions ``[3, m]``, in which all tokens of a picture have its start position on all axes; and the offset
        that gives the position of the next token when it is added to the number of tokens so far.
    """
    begun, stays = positions.clone(), torch.ones(positions.shape[1], dtype=torch.bool)
    for start, num_tokens, num_kept in pictures:
        begun[:, start : start + num_kept] = positions[:, start : start + 1]
        stays[start + num_kept : start + num_tokens] = False
    return begun[:, stays], int(positions.max()) + 1 - int(stays.sum())
