"""A host that notes what nodes tell it, and what the tests of the nodes ask about."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tops_workflow.host import Folders, current_host
from tops_workflow.samples import samples_folder
from torch import Tensor

import nodes
from nodes.models import TopsModel
from nodes.pictures import to_image
from tops_engine.engine import Engine
from tops_engine.settings import ModelSpec

QUESTION = "What number is written?"


class RecordingHost:
    """Notes what a node tells it; interrupts after so many steps, once a text was shown, or at a word, if asked to."""

    def __init__(self, folders: Folders) -> None:
        self.folders = folders
        self.stop_after: int | None = None
        self.stop_at_text = False
        self.stop = threading.Event()
        self.steps: list[tuple[int, int]] = []
        self.texts: list[str] = []

    def progress(self, value: int, total: int) -> None:
        self.steps.append((value, total))

    def show_text(self, text: str) -> None:
        self.texts.append(text)

    @property
    def interrupted(self) -> bool:
        late = self.stop_after is not None and len(self.steps) >= self.stop_after
        return late or self.stop.is_set() or (self.stop_at_text and bool(self.texts))


@pytest.fixture
def watching(tmp_path: Path) -> Iterator[RecordingHost]:
    host = RecordingHost(Folders.under(tmp_path))
    for folder in (host.folders.input, host.folders.output, *host.folders.models["TOPS"]):
        folder.mkdir(parents=True)
    token = current_host.set(host)
    yield host
    current_host.reset(token)


def node(name: str) -> Any:
    return nodes.NODE_CLASS_MAPPINGS[name]()


@pytest.fixture(scope="module")
def model() -> TopsModel:
    handle: TopsModel = node("TOPSLoadModel").load("mini", "auto", "cpu", "none", "sdpa")[0]
    return handle


@pytest.fixture(scope="module")
def photo() -> Tensor:
    return to_image([Image.open(samples_folder() / "tops_photo.jpg")])


@pytest.fixture(scope="module")
def plain() -> Engine:
    return Engine.load(ModelSpec(model="mini", device="cpu"))


def ask(model: TopsModel, prompt: str | None = QUESTION, tokens: int = 32, **inputs: Any) -> Any:
    return node("TOPSAsk").ask(model, prompt, tokens, 0.0, 0, **inputs)
