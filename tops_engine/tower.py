"""What a vision tower leaves out: equal pictures and patches, and patches that are dropped inside it."""

from typing import Literal, NamedTuple

#: What is encoded once: nothing, pictures, tiles and frames that are equal, or also patches equal to their neighbour.
Dedup = Literal["none", "exact", "patches"]


class TowerOptions(NamedTuple):
    """How a vision tower runs.

    Attributes
    ----------
    dedup : what is encoded once.
    keep : fraction of the patches that the layers from ``layer`` on read.
    layer : the first of them, from 1; None is half of the layers.
    """

    dedup: Dedup = "none"
    keep: float = 1.0
    layer: int | None = None


#: The tower as it is: transformers' own forward over everything.
WHOLE_TOWER = TowerOptions()
