"""Skip tests that need lmms-eval if it is not installed."""

import importlib.util

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if importlib.util.find_spec("lmms_eval") is not None:
        return
    skip = pytest.mark.skip(
        reason="lmms-eval is not in this environment; make test-eval makes one and runs these tests"
    )
    for item in items:
        if item.get_closest_marker("eval"):
            item.add_marker(skip)
