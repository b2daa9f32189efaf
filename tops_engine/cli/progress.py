"""Showing on stderr how far a long command is."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as RichProgress
from rich.text import Text

from tops_engine.cli.output import err
from tops_engine.media.folders import left_out_sentence
from tops_engine.progress import Progress

if TYPE_CHECKING:
    from tops_engine.evaluation.data_set import DataSet


class _Rate(ProgressColumn):
    """Steps a second."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.2f}/s" if task.speed else "", style="progress.data.speed")


@contextmanager
def progress_bar(unit: str) -> Iterator[Progress]:
    """Show a progress bar from the first report until the block ends; ``unit`` is what it counts."""
    columns = (TextColumn(unit), BarColumn(), MofNCompleteColumn(), _Rate(), TimeElapsedColumn(), TimeRemainingColumn())
    bar = RichProgress(*columns, console=err)
    task = bar.add_task("", start=False)

    def report(done: int, total: int, /) -> None:
        if bar.live.is_started:
            bar.update(task, completed=done, total=total)
        else:  # what was done before counts neither for the rate nor for the time that remains
            bar.reset(task, completed=done, total=total)
            bar.start()

    try:
        yield report
    finally:
        if bar.live.is_started:
            bar.stop()


@contextmanager
def listing_skipped(data: "DataSet") -> Iterator[None]:
    """List the pictures that the block skipped when it ends, with an error or without, and what is no picture."""
    try:
        yield
        if left_out := left_out_sentence(data.left_out):
            err.print(left_out, style="dim", highlight=False, soft_wrap=True)
    finally:
        for picture, reason in data.skipped.items():
            err.print(f"[yellow]Skipped[/] {escape(picture)}: {escape(reason)}", highlight=False, soft_wrap=True)
