"""A host that notes what nodes tell it."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tops_workflow.host import Folders, current_host

import nodes


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
