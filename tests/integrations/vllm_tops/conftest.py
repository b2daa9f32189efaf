"""Skip tests that need vLLM if it is not installed."""

import importlib.util

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if importlib.util.find_spec("vllm") is not None:
        return
    skip = pytest.mark.skip(reason="vLLM is not in this environment; make test-vllm makes one and runs these tests")
    for item in items:
        if item.get_closest_marker("vllm"):
            item.add_marker(skip)
