"""Functions that the commands share: the consoles, loading a model, writing pictures."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from tops_engine.dependencies import check_versions
from tops_engine.errors import InvalidInput, ServerError, TopsError, reason_of, shorten
from tops_engine.settings import ModelSpec

if TYPE_CHECKING:
    from PIL.Image import Image

    from tops_engine.engine import Engine
    from tops_engine.media.videos import Video

#: Failures that are printed of a run over many pictures.
MOST_FAILURES = 10

# The width of tables where no terminal sets one.
PIPE_WIDTH = 160

out = Console(width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else PIPE_WIDTH)
err = Console(stderr=True)

METHODS_HELP = (
    "Pruning methods, separated by commas, with options if wanted: tops,tops:lambda=2.0:raters=last; "
    "`all` is every method, those for videos only for a video."
)
PRUNING_HELP = "A pruning from a JSON file, such as `tops tune` writes; give it several times for several."


def load_engine(spec: ModelSpec) -> "Engine":
    check_versions()
    from tops_engine.checkpoints import checkpoint_source

    if spec.model != "mini":
        # Its errors come before the seconds that importing torch takes.
        source = checkpoint_source(spec.model, spec.revision)
        if source == spec.model:
            _download(spec)
    from transformers.utils import logging

    from tops_engine.engine import Engine

    if spec.model == "mini" or not sys.stderr.isatty():
        logging.disable_progress_bar()
    engine = Engine.load(spec)
    if spec.dtype == "auto" and engine.device.type == "cpu" and "bfloat16" in str(engine.family.decoder.dtype):
        err.print("In bfloat16, which is faster on this CPU; --dtype float32 sets the other.", style="dim")
    return engine


def _download(spec: ModelSpec) -> None:
    """Download a checkpoint into the hub's cache, with its size, a progress bar, and what a stopped one leaves."""
    from tops_engine.downloads import fetch

    columns = (TextColumn("Downloading"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err, transient=True, disable=not sys.stderr.isatty()) as bar:
        task, said = bar.add_task("", total=None), False

        def show(done: int, total: int, /) -> None:
            nonlocal said
            if total and not said:
                size = f"{(total - done) / 1e9:.2f} of {total / 1e9:.2f} GB" if done else f"{total / 1e9:.2f} GB"
                err.print(f"Downloading {shorten(spec.model)}: {size}", markup=False, highlight=False, style="dim")
                said = True
            bar.update(task, completed=done, total=total or None)

        try:
            fetch(spec, show)
        except (SystemExit, KeyboardInterrupt):
            err.print("Stopped; the same command continues the download.", highlight=False)
            raise


def read_video(path: Path, num_frames: int | None, fps: float | None) -> "Video":
    """Open a video, with a progress bar on terminals."""
    from tops_engine.media.videos import open_video

    with Progress(console=err, transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task(f"Reading {escape(path.name)}", total=None)
        return open_video(path, num_frames, fps, lambda done, total: bar.update(task, completed=done, total=total))


def check_folder(path: Path | None) -> None:
    """Check before the work that its result can be written."""
    if path is not None and (path.is_dir() or not path.parent.is_dir()):
        raise InvalidInput(f"There is no folder to write {shorten(path)} into, or it is a folder itself.")


def save_picture(picture: "Image", path: Path, what: str) -> None:
    """Write a picture, and print ``what`` it is and where it is."""
    try:
        picture.save(path)
    except (OSError, ValueError) as error:
        raise InvalidInput(f"A picture cannot be written to {shorten(path)}: {reason_of(error)}.") from error
    err.print(f"{what}: {path}", style="dim", highlight=False)


@contextmanager
def resumable(output: Path | None) -> Iterator[None]:
    """If the block is stopped, print that the same command continues the output file."""
    try:
        yield
    except (SystemExit, KeyboardInterrupt, ServerError):
        if output is not None:
            err.print(f"Stopped; the same command continues {output}.", highlight=False, soft_wrap=True)
        raise


class FailureList:
    """Print the first failures; the results file has the errors of all pictures."""

    def __init__(self) -> None:
        self._count = 0

    def __call__(self, name: str, error: TopsError) -> None:
        self._count += 1
        if self._count <= MOST_FAILURES:
            err.print(f"[yellow]Failed[/] {escape(name)}: {escape(str(error))}", highlight=False, soft_wrap=True)
        elif self._count == MOST_FAILURES + 1:
            err.print("More failures are not shown.", style="yellow")
