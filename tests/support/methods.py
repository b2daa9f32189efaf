"""Which methods the tests run on pictures."""

from collections.abc import Iterable
from typing import Any

import pytest

from tops_engine.methods import METHODS


def on_pictures(names: Iterable[str]) -> list[Any]:
    """Return parameters for a test with pictures: methods for videos, which have other tests, have the marker full."""
    return [pytest.param(name, marks=pytest.mark.full if METHODS[name].for_videos else ()) for name in names]
