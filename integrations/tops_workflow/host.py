"""The contract between a node and its host, the program that runs it: folders, progress, live text, interruption."""

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

#: Where `tops studio` and `tops workflow run` keep their files unless another folder is given.
USER_FOLDER = Path("~/tops-studio")


class Interrupted(BaseException):
    """Raised when the user stops the run; not an ``Exception``, so that nodes do not handle it as a failure."""


@dataclass(frozen=True)
class Folders:
    """The folders that nodes read from and write to.

    Attributes
    ----------
    input, output, temp : the folders of these names in ComfyUI.
    models : folders of checkpoints by kind, such as ``{"TOPS": [...], "LLM": [...]}``.
    user : the folder where the frontend keeps the user's files, such as saved prompts; None if there is none.
    """

    input: Path
    output: Path
    temp: Path
    models: dict[str, list[Path]] = field(default_factory=dict)
    user: Path | None = None

    @classmethod
    def under(cls, base: Path) -> "Folders":
        """Return the folders with ComfyUI's names below one folder."""
        models = {kind: [base / "models" / kind] for kind in ("TOPS", "LLM")}
        return cls(base / "input", base / "output", base / "temp", models, base / "user")


class Host(Protocol):
    """The interface of a host for the running node."""

    @property
    def folders(self) -> Folders: ...

    def progress(self, value: int, total: int) -> None:
        """Report that ``value`` of ``total`` steps of the running node are done."""

    def show_text(self, text: str) -> None:
        """Show the text that the running node has produced so far."""

    @property
    def interrupted(self) -> bool:
        """Whether the user asked to stop the run."""


class QuietHost:
    """The host of nodes that are called as plain Python: it shows nothing.

    By default ``folders`` are below the current directory.
    """

    interrupted = False

    def __init__(self, folders: Folders | None = None) -> None:
        here = Folders.under(Path.cwd())
        self.folders = folders or Folders(here.input, here.output, Path(tempfile.gettempdir()) / "tops", here.models)

    def progress(self, value: int, total: int) -> None:
        pass

    def show_text(self, text: str) -> None:
        pass


#: The host of the node that runs in this context; unset outside of a runner.
current_host: ContextVar[Host | None] = ContextVar("current_host", default=None)


#: The prompt whose nodes are being checked in this context, for a node that checks its values with those of others.
checked_prompt: ContextVar[Mapping[str, Any] | None] = ContextVar("checked_prompt", default=None)


@contextmanager
def hosted(host: Host) -> Iterator[None]:
    """Make ``host`` the host of the nodes that run inside the block."""
    token = current_host.set(host)
    try:
        yield
    finally:
        current_host.reset(token)
