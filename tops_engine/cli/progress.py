"""Showing on stderr how far a long command is."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from tops_engine.cli.output import err
from tops_engine.progress import Progress

if TYPE_CHECKING:
    from tops_engine.evaluation.data_set import DataSet


@contextmanager
def progress_bar(unit: str) -> Iterator[Progress]:
    """Show a progress bar from the first report until the block ends; ``unit`` is what it counts."""
    columns = (TextColumn(unit), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    bar = RichProgress(*columns, console=err)
    task = bar.add_task("", start=False)

    def report(done: int, total: int, /) -> None:
        if not bar.live.is_started:
            bar.start_task(task)
            bar.start()
        bar.update(task, completed=done, total=total)

    try:
        yield report
    finally:
        if bar.live.is_started:
            bar.stop()


@contextmanager
def listing_skipped(data: "DataSet") -> Iterator[None]:
    """List the pictures that the block skipped when it ends, with an error or without."""
    try:
        yield
    finally:
        for picture, reason in data.skipped.items():
            err.print(f"[yellow]Skipped[/] {escape(picture)}: {escape(reason)}", highlight=False, soft_wrap=True)
