"""The chat model on mini, and pictures it understands."""

from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import HumanMessage
from langchain_tops import ChatTOPSLlava, image_block

import tops_engine.mini

SAMPLE = str(Path(tops_engine.mini.__file__).with_name("sample.jpg"))


@pytest.fixture
def model() -> ChatTOPSLlava:
    return ChatTOPSLlava(model="mini", device="cpu", keep=0.5, max_tokens=100)


@pytest.fixture(scope="session")
def photo() -> dict[str, Any]:
    """A scene with the digit 5 on a card."""
    return image_block(SAMPLE)


def asking(text: str, *blocks: Any) -> Any:
    """A question about blocks."""
    return [HumanMessage([*blocks, {"type": "text", "text": text}])]
