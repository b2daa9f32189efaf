"""Where the kept tokens of a picture lie: coordinates that travel beside tokens, and positions of a pruned prompt.

Qwen-VL numbers a picture's tokens by row and column, counted from the position that the picture starts at, and the text
after it goes on from its longer side. None of that changes when tokens are dropped. vLLM numbers a prompt when it
arrives, before the vision tower has run; what is known then is the text's part and where each picture starts.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

#: Columns that a packed token has more than a token.
NUM_COORDINATES = 4

# Small enough that half precision (bfloat16: 8 bits) holds each digit exactly.
BASE = 256


class Kept(NamedTuple):
    """A picture in the unpruned prompt: where its tokens start, how many it has, and how many of them stay."""

    start: int
    num_tokens: int
    num_kept: int


def pack(tokens: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Tokens ``[k, d]`` and where each lies in its picture, int64 ``[k]``, as ``[k, d + NUM_COORDINATES]``."""
    places = torch.stack([rows, columns], dim=1).to(tokens.device)
    digits = torch.stack([places // BASE, places % BASE], dim=2).flatten(1)
    return torch.cat([tokens, digits.to(tokens.dtype)], dim=1)


def unpack(packed: Tensor) -> tuple[Tensor, Tensor]:
    """What :func:`pack` joined: tokens ``[k, d]``; rows and columns, int64 ``[2, k]``."""
    digits = packed[:, -NUM_COORDINATES:].long().reshape(-1, 2, 2)
    return packed[:, :-NUM_COORDINATES], (digits[..., 0] * BASE + digits[..., 1]).T


def pruned_positions(positions: Tensor, pictures: Sequence[Kept]) -> tuple[Tensor, int]:
    """Positions of a prompt, given those of the same prompt with nothing dropped.

    Args:
        positions: int64 ``[3, n]``.
        pictures: In the order of the prompt.

    Returns:
        Positions ``[3, m]``, in which the tokens of a picture have the one that the picture starts at, on all axes;
        what has to be added to the number of tokens so far to get the next one's position.
    """
    begun, stays = positions.clone(), torch.ones(positions.shape[1], dtype=torch.bool)
    for start, num_tokens, num_kept in pictures:
        begun[:, start : start + num_kept] = positions[:, start : start + 1]
        stays[start + num_kept : start + num_tokens] = False
    return begun[:, stays], int(positions.max()) + 1 - int(stays.sum())
