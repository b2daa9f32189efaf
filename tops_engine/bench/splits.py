"""The scenes that a benchmark asks about."""

from typing import Literal

Split = Literal["test", "confirm"]

#: The first scene of each split. Training and its evaluations use other scenes; nothing was ever tuned on ``confirm``.
FIRST_SEEDS: dict[Split, int] = {"test": 10_000_000, "confirm": 20_000_000}
