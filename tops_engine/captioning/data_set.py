"""Captions for a folder of any size, in a JSONL file that a stopped run continues."""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from tops_engine.answers.report import Usage
from tops_engine.captioning.asking import Captioned, Picture
from tops_engine.captioning.texts import read_text, write_text
from tops_engine.errors import InvalidImage, InvalidInput
from tops_engine.journal import Journal
from tops_engine.media.folders import list_pictures, picture_files
from tops_engine.remote import RemoteUsage

Ask = Callable[[Iterator[Picture]], Iterable[Captioned]]

FORMAT = "tops captions 1"

#: How many failures are shown; the file holds all of them.
MOST_SHOWN = 10

#: So many failures before the first caption, of pictures that could be opened, are not the pictures' fault.
HOPELESS = 20


@dataclass
class Captioning:
    """What a run did.

    Attributes
    ----------
    before : pictures that had their caption in the file already.
    captioned, failed : pictures asked about in this run.
    refused : those of the failed that could be opened.
    texts_kept : pictures whose text file was there already and was left as it is.
    seconds : of this run.
    """

    before: int
    captioned: int = 0
    failed: int = 0
    refused: int = 0
    texts_kept: int = 0
    seconds: float = 0.0

    def sentence(self) -> str:
        """For people."""
        if not self.captioned and not self.failed:
            return f"Nothing to do: all {self.before} pictures have their caption."
        rate = self.captioned / self.seconds if self.seconds else 0.0
        parts = [f"{self.captioned} captioned in {self.seconds:.1f} s ({rate:.2f} a second)"]
        parts += [f"{self.before} before"] * bool(self.before) + [f"{self.failed} failed"] * bool(self.failed)
        parts += [f"{self.texts_kept} text files were there and are as they were"] * bool(self.texts_kept)
        return ", ".join(parts) + "."


def caption_folder(
    ask: Ask,
    folder: Path,
    path: Path,
    settings: dict[str, Any],
    write_txt: bool = False,
    console: Console | None = None,
) -> Captioning:
    """Caption every picture in a folder and its sub-folders, known by their relative paths.

    Each caption is a line of the file as soon as it is there; once all pictures were asked about, the lines are put in
    the order of the pictures. Pictures that have their caption are not asked about again, those that failed are.

    Parameters
    ----------
    ask : answers about pictures in any order, as few of them at a time as it can; called only if there are any.
    path : the JSONL file: a header, then one picture a line.
    settings : what has to be the same for a run to continue the file.
    write_txt : also write the caption into a .txt file beside its picture, unless there is one.
    console : shows progress and failures, if given.

    Raises
    ------
    InvalidInput
        If there are no pictures, ``path`` belongs to another run, or nothing works at all.
    """
    total = len(list_pictures(folder))
    journal = Journal(path, {"format": FORMAT, "folder": folder.resolve().name} | settings)
    done = {line["picture"] for line in journal.records() if "caption" in line and "picture" in line}
    done.intersection_update(picture_files(folder))
    if write_txt:
        for line in journal.records():
            if "caption" in line and line.get("picture") in done:
                _add_text(folder / line["picture"], line["caption"])
    run = Captioning(before=len(done))
    missing = (Picture(name, folder / name) for name in picture_files(folder) if name not in done)
    answers = ask(missing) if run.before < total else ()
    began = time.monotonic()
    with _progress(console) as progress:
        task = progress.add_task("", total=total, completed=run.before, rate="")
        for one in answers:
            if write_txt and one.answer is not None:
                run.texts_kept += not _add_text(folder / one.name, one.caption)
            journal.append([_line(one)])
            _count(one, run, console)
            run.seconds = time.monotonic() - began
            progress.update(task, advance=1, rate=f"{(run.captioned + run.failed) / run.seconds:.2f}/s")
    journal.sort(_in_walking_order)
    return run


def _add_text(picture: Path, caption: str) -> bool:
    """Whether the picture had no text yet; it has the caption now."""
    if read_text(picture) is not None:
        return False
    write_text(picture, caption)
    return True


def _line(one: Captioned) -> dict[str, Any]:
    if one.answer is None:
        return {"picture": one.name, "error": str(one.error)}
    line = {"picture": one.name, "caption": one.caption, "finish_reason": one.answer.finish_reason}
    return line | _tokens(one.answer.usage) | {"seconds": round(one.answer.timings.total, 3)}


def _tokens(usage: Usage | RemoteUsage | None) -> dict[str, int]:
    """What is known: of the prompt as it entered the language model, of its pictures, of the answer."""
    if usage is None:
        return {}
    visual = sum(usage.stages[0].visual_tokens) if isinstance(usage, Usage) else usage.visual_tokens
    counts = {
        "prompt_tokens": usage.input_tokens,
        "visual_tokens": visual,
        "completion_tokens": usage.completion_tokens,
    }
    return {name: count for name, count in counts.items() if count is not None}


def _count(one: Captioned, run: Captioning, console: Console | None) -> None:
    if one.error is None:
        run.captioned += 1
        return
    run.failed += 1
    run.refused += not isinstance(one.error, InvalidImage)
    if console is not None and run.failed <= MOST_SHOWN:
        console.print(
            f"[yellow]Failed[/] {escape(one.name)}: {escape(str(one.error))}", highlight=False, soft_wrap=True
        )
    if run.refused >= HOPELESS and not run.captioned:
        raise InvalidInput(f"None of the first {run.failed} pictures could be captioned; the last: {one.error}")


def _in_walking_order(line: dict[str, Any]) -> str:
    """Sorts as :func:`picture_files` goes: folder by folder."""
    return str(line.get("picture")).replace("/", "\0")


def _progress(console: Console | None) -> Progress:
    columns = (TextColumn("pictures"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"))
    times = (TimeElapsedColumn(), TimeRemainingColumn())
    return Progress(*columns, *times, console=console, disable=console is None)
