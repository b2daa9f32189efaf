"""The weights and configs of published checkpoints, one JSON file each in ``layouts``: names, shapes and their sources.

``keys`` maps patterns to shapes. ``{0-47}`` stands for each number of a range, ``{a,b}`` for each of several names.
"""

import itertools
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

FILES = sorted((Path(__file__).parent / "layouts").glob("*.json"))


@dataclass(frozen=True)
class PublishedLayout:
    """The layout of a published checkpoint.

    Attributes
    ----------
    checkpoints : names on the hub of the checkpoints with this layout; the sizes are those of the first.
    sources : where names, shapes and config values are stated.
    config : contents of config.json.
    keys : shapes of the weights by patterns of their names.
    """

    checkpoints: list[str]
    sources: list[str]
    config: dict[str, Any]
    keys: dict[str, list[int]]

    @classmethod
    def read(cls, file: Path) -> "PublishedLayout":
        return cls(**json.loads(file.read_text(encoding="utf-8")))

    def weights(self) -> dict[str, Tensor]:
        """Return all weights on the meta device, as the checkpoint's files name them."""
        shapes = ((name, shape) for pattern, shape in self.keys.items() for name in expanded(pattern))
        return {name: torch.empty(shape, device="meta") for name, shape in shapes}


def expanded(pattern: str) -> list[str]:
    """Return the names that a pattern stands for."""
    pieces = re.split(r"{([^}]*)}", pattern)
    choices = [_choices(piece) if index % 2 else [piece] for index, piece in enumerate(pieces)]
    return ["".join(parts) for parts in itertools.product(*choices)]


def _choices(piece: str) -> list[str]:
    first, dash, last = piece.partition("-")
    if dash and first.isdigit():
        return [str(number) for number in range(int(first), int(last) + 1)]
    return [choice for part in piece.split(",") for choice in (_choices(part) if re.match(r"\d+-", part) else [part])]
