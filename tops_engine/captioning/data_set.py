"""Caption a folder of any size into a JSONL file that a stopped run continues."""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tops_engine.answers.base import TokenCounts
from tops_engine.captioning.asking import Captioned, Failures, Picture
from tops_engine.captioning.texts import check_own_texts, read_text, write_text
from tops_engine.errors import InvalidInput, TopsError
from tops_engine.journal import Journal
from tops_engine.media.folders import left_out_sentence, list_pictures
from tops_engine.progress import Progress, no_progress

Ask = Callable[[Iterator[Picture]], Iterable[Captioned]]

#: Is told the name of a picture and what failed.
OnFailure = Callable[[str, TopsError], None]

FORMAT = "tops captions 1"


@dataclass
class Captioning:
    """The summary of a run.
    Attributes
    ----------
    before : pictures whose caption was in the file already.
    left_out : files and folders that are no pictures, by kind.
    captioned, failed : pictures asked about in this run.
    texts_kept : pictures whose text file existed and was left as it is.
    texts_failed : pictures whose text file could not be read or written; their captions are in the file.
    seconds : duration of this run.
    """

    before: int
    left_out: Counter[str] = field(default_factory=Counter)
    captioned: int = 0
    failed: int = 0
    texts_kept: int = 0
    texts_failed: int = 0
    seconds: float = 0.0

    def sentence(self) -> str:
        """Return the counts as a sentence for people."""
        if self.captioned or self.failed:
            rate = self.captioned / self.seconds if self.seconds else 0.0
            parts = [f"{self.captioned} captioned in {self.seconds:.1f} s ({rate:.2f} a second)"]
            parts += [f"{self.before} captioned before"] * bool(self.before)
            parts += [f"{self.failed} failed"] * bool(self.failed)
        else:
            parts = [f"Nothing to do: all {self.before} pictures have their caption"]
        parts += [f"{self.texts_kept} existing text files kept"] * bool(self.texts_kept)
        parts += [f"{self.texts_failed} text files not written"] * bool(self.texts_failed)
        return f"{', '.join(parts)}. {left_out_sentence(self.left_out)}".rstrip()


def caption_folder(
    ask: Ask,
    folder: Path,
    path: Path,
    settings: dict[str, Any],
    write_txt: bool = False,
    progress: Progress = no_progress,
    on_failure: OnFailure = lambda name, error: None,
) -> Captioning:
    """Caption every picture in a folder and its subfolders.

    Each caption is a line of the file as soon as it is there; after the last one, the lines are put in the order of
    the pictures. A picture that has its caption is not asked about again, one that failed is.

    Parameters
    ----------
    ask : answers about pictures in any order, with as few of them open at a time as it can; called only if there are
        any.
    path : the JSONL file: a header, then one picture a line, known by its path in the folder.
    settings : what has to be the same for a run to continue the file.
    write_txt : also write each caption into a .txt file beside its picture, unless that has one. A text file that
        cannot be read or written fails alone; the next run tries again, without asking the model.
    progress : gets the number of pictures that are done and of all.
    on_failure : is told about each picture and text file that fails.

    Raises
    ------
    InvalidInput
        If there are no pictures, two of them share a text file that is to be written, ``path`` belongs to another run,
        or nothing works at all.
    """
    left_out: Counter[str] = Counter()
    names = list_pictures(folder, left_out)
    if write_txt:
        check_own_texts(folder / name for name in names)
    journal = Journal(path, {"format": FORMAT, "folder": folder.resolve().name} | settings)
    done = {line["picture"] for line in journal.records() if "caption" in line and "picture" in line}
    done.intersection_update(names)
    run = Captioning(len(done), left_out)
    if write_txt:
        for line in journal.records():
            if "caption" in line and line.get("picture") in done:
                _add_text(run, folder, line["picture"], line["caption"], on_failure, count_kept=False)
    missing = (Picture(name, folder / name) for name in names if name not in done)
    answers = ask(missing) if run.before < len(names) else ()
    began = time.monotonic()
    failures = Failures()
    progress(run.before, len(names))
    for one in answers:
        if write_txt and one.answer is not None:
            _add_text(run, folder, one.name, one.caption, on_failure)
        journal.append([_line(one)])
        if one.error is not None:
            on_failure(one.name, one.error)
        failures.count(one)
        run.captioned, run.failed = failures.num_captioned, failures.num_failed
        run.seconds = time.monotonic() - began
        progress(run.before + run.captioned + run.failed, len(names))
    journal.sort(_in_walking_order)
    return run


def _add_text(
    run: Captioning, folder: Path, name: str, caption: str, on_failure: OnFailure, count_kept: bool = True
) -> None:
    """Write a picture's text file unless it has one; count what happened."""
    try:
        if read_text(folder / name) is None:
            write_text(folder / name, caption)
        elif count_kept:
            run.texts_kept += 1
    except InvalidInput as error:
        run.texts_failed += 1
        on_failure(name, error)


def _line(one: Captioned) -> dict[str, Any]:
    if one.answer is None:
        return {"picture": one.name, "error": str(one.error)}
    line = {"picture": one.name, "caption": one.caption, "finish_reason": one.answer.finish_reason}
    return line | _tokens(one.answer.usage) | {"seconds": round(one.answer.timings.total, 3)}


def _tokens(usage: TokenCounts | None) -> dict[str, int]:
    """Return what is known of the prompt as it entered the language model, of its pictures, and of the answer."""
    if usage is None:
        return {}
    counts = {
        "prompt_tokens": usage.input_tokens,
        "visual_tokens": usage.input_visual_tokens,
        "completion_tokens": usage.completion_tokens,
    }
    return {name: count for name, count in counts.items() if count is not None}


def _in_walking_order(line: dict[str, Any]) -> str:
    """Return a key that sorts as :func:`tops_engine.media.folders.picture_files` walks: folder by folder."""
    return str(line.get("picture")).replace("/", "\0")
