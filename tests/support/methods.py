"""Which methods the tests run on pictures."""

from collections.abc import Collection, Iterable, Sequence
from typing import Any

import pytest

from tops_engine.methods import METHODS

#: Methods that prune at the same places and read much the same as others. By default they run on one or two models;
#: the marker full repeats them on all.
LIKE_OTHERS = frozenset({"hawk", "transprune", "visiontrim", "vscan"})


def on_pictures(names: Sequence[str]) -> list[Any]:
    """Return parameters for a test with pictures.

    Methods for videos, which have other tests, and those that are like others have the marker full.
    """
    return marked_full(names, LIKE_OTHERS | {name for name in names if METHODS[name].for_videos})


def marked_full(names: Iterable[str], repeated: Collection[str] = LIKE_OTHERS) -> list[Any]:
    """Return parameters for a test, of which those that repeat others have the marker full."""
    return [pytest.param(name, marks=pytest.mark.full if name in repeated else ()) for name in names]
