"""What runs a node, as the node sees it: folders, progress, live text, interruption."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol


class Interrupted(BaseException):
    """The user stopped the run. Not an ``Exception``, so that no node takes it for a failure of its own."""


@dataclass(frozen=True)
class Folders:
    """Where pictures come from and go to, and where checkpoints lie.

    Attributes
    ----------
    input, output, temp : what ComfyUI calls so.
    models : folders of checkpoints by kind, such as ``{"TOPS": [...], "LLM": [...]}``.
    """

    input: Path
    output: Path
    temp: Path
    models: dict[str, list[Path]] = field(default_factory=dict)

    @classmethod
    def under(cls, base: Path) -> "Folders":
        """ComfyUI's names below one folder."""
        models = {kind: [base / "models" / kind] for kind in ("TOPS", "LLM")}
        return cls(base / "input", base / "output", base / "temp", models)


class Host(Protocol):
    """The runner's side of a running node."""

    @property
    def folders(self) -> Folders: ...

    def progress(self, value: int, total: int) -> None:
        """``value`` of ``total`` steps of the running node are done."""

    def show_text(self, text: str) -> None:
        """Show the running node's text so far."""

    @property
    def interrupted(self) -> bool:
        """Whether the user wants the run to stop."""


class QuietHost:
    """Nobody watches: nodes called as plain Python. ``folders`` are below the current directory."""

    interrupted = False

    def __init__(self, folders: Folders | None = None) -> None:
        here = Folders.under(Path.cwd())
        self.folders = folders or Folders(here.input, here.output, Path(tempfile.gettempdir()) / "tops", here.models)

    def progress(self, value: int, total: int) -> None:
        pass

    def show_text(self, text: str) -> None:
        pass


#: The host of the node that runs in this context; unset outside a runner.
current_host: ContextVar[Host | None] = ContextVar("current_host", default=None)


@contextmanager
def hosted(host: Host) -> Iterator[None]:
    """Nodes that are asked or run inside the block find this host."""
    token = current_host.set(host)
    try:
        yield
    finally:
        current_host.reset(token)
