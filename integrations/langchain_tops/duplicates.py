"""Pictures of a conversation that show the same: the same pixels, or nearly so."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from langchain_tops.pictures import Picture

#: Two pictures of one size are nearly the same if no cell of a grid of 64 x 64 differs by more than this much of 255 in
#: any of its mean red, green and blue. JPEG at quality 90 stays below it; a digit that changed does not.
NEAR = 6


class Copy(NamedTuple):
    """A later picture that shows the same: its number, and whether all pixels are equal."""

    number: int
    is_exact: bool


def copies(pictures: Sequence[Picture]) -> dict[int, Copy]:
    """Return the newest picture that shows the same as each of those that a newer one repeats, by their numbers."""
    newest: list[Picture] = []
    found: dict[int, Copy] = {}
    for picture in reversed(pictures):
        if picture.look is None:
            continue
        exact = next((each for each in newest if each.look == picture.look), None)
        same = exact or next((each for each in newest if _is_near(each, picture)), None)
        if same is None:
            newest.append(picture)
        else:
            found[picture.number] = Copy(same.number, exact is not None)
    return found


def _is_near(one: Picture, other: Picture) -> bool:
    if one.look is None or other.look is None or one.look.size != other.look.size:
        return False
    first, second = (np.frombuffer(each, np.uint8).astype(int) for each in (one.look.thumbnail, other.look.thumbnail))
    return bool(np.abs(first - second).max() <= NEAR)
