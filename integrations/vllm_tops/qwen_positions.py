"""Positions of kept tokens: coordinates that are stored with the tokens, and positions of a pruned prompt.

Qwen-VL gives the tokens of a picture or video positions by time, row and column, counted from its start position. The
text after it continues from its longest side. Dropping tokens changes neither. vLLM computes the positions of a prompt
when it arrives, before the vision tower has run; only the positions of text and the start position of each picture and
video are known then.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

#: The number of columns that :func:`pack` adds to a token.
NUM_COORDINATES = 6

# Half precision (bfloat16: 8 bits) holds each digit below this base exactly.
BASE = 256


class Kept(NamedTuple):
    """A picture or video in the unpruned prompt: the start of its tokens, their number, and that of the kept ones.

    The text between the frames of a video is among its tokens, and all of it is kept.
    """

    start: int
    num_tokens: int
    num_kept: int


def pack(tokens: Tensor, coordinates: Tensor) -> Tensor:
    """Join tokens ``[k, d]`` with their times, rows and columns, int64 ``[3, k]``: ``[k, d + NUM_COORDINATES]``."""
    places = coordinates.T.to(tokens.device)
    digits = torch.stack([places // BASE, places % BASE], dim=2).flatten(1)
    return torch.cat([tokens, digits.to(tokens.dtype)], dim=1)


def unpack(packed: Tensor) -> tuple[Tensor, Tensor]:
    """Split what :func:`pack` joined into tokens ``[k, d]`` and times, rows and columns, int64 ``[3, k]``."""
    digits = packed[:, -NUM_COORDINATES:].long().reshape(-1, 3, 2)
    return packed[:, :-NUM_COORDINATES], (digits[..., 0] * BASE + digits[..., 1]).T


def pruned_positions(positions: Tensor, visuals: Sequence[Kept]) -> tuple[Tensor, int]:
    """Compute the positions of a pruned prompt from those of the unpruned prompt.

    Args:
        positions: Positions of the unpruned prompt, int64 ``[3, n]``.
        visuals: The pictures and videos, in the order of the prompt.

    Returns:
        Positions ``[3, m]``, in which all tokens of a picture or video have its start position; and the offset
        that gives the position of the next token when it is added to the number of tokens so far.
    """
    begun, stays = positions.clone(), torch.ones(positions.shape[1], dtype=torch.bool)
    for start, num_tokens, num_kept in visuals:
        begun[:, start : start + num_kept] = positions[:, start : start + 1]
        stays[start + num_kept : start + num_tokens] = False
    return begun[:, stays], int(positions.max()) + 1 - int(stays.sum())
