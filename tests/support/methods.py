"""Which methods the tests run on pictures."""

from collections.abc import Iterable
from typing import Any

import pytest

from tops_engine.methods import METHODS

#: Methods that prune at the same places and read much the same as others. By default they run on one or two models;
#: the marker full repeats them on all.
LIKE_OTHERS = frozenset({"hawk", "transprune", "visiontrim", "vscan"})


def on_pictures(names: Iterable[str]) -> list[Any]:
    """Return parameters for a test with pictures.

    Methods for videos, which have other tests, and those that are like others have the marker full.
    """
    return [pytest.param(name, marks=pytest.mark.full if _repeats(name) else ()) for name in names]


def _repeats(name: str) -> bool:
    return METHODS[name].for_videos or name in LIKE_OTHERS
