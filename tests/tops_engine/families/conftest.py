"""Fixtures of the tests of families: engines on the small checkpoints of tests/support/towers.py, loaded once."""

from collections.abc import Callable

import pytest

from tests.support.towers import ONLY_EQUAL, PACKED, TILES, WHOLE_ONLY, Loaded
from tops_engine.engine import Engine
from tops_engine.settings import ModelSpec


@pytest.fixture(scope="package")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Engine]:
    made: dict[str, Engine] = {}

    def engine(name: str) -> Engine:
        if name not in made:
            folder = (TILES | PACKED | ONLY_EQUAL | WHOLE_ONLY)[name](tmp_path_factory.mktemp(name))
            made[name] = Engine.load(ModelSpec(model=str(folder), device="cpu"))
        return made[name]

    return engine


@pytest.fixture
def loaded(request: pytest.FixtureRequest, engines: Callable[[str], Engine]) -> Loaded:
    return Loaded(request.param, engines(request.param))
