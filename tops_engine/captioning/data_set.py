"""Caption a folder of any size into a JSONL file that a stopped run continues."""

import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tops_engine.answers.base import TokenCounts
from tops_engine.captioning.asking import Captioned, Failures, Picture
from tops_engine.captioning.texts import check_own_texts, has_text, read_text, write_text
from tops_engine.errors import InvalidInput, TopsError
from tops_engine.journal import Journal
from tops_engine.media.folders import counts_of_run, left_out_sentence, list_pictures
from tops_engine.progress import Progress, no_progress
from tops_engine.settings import CaptionText

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
        parts = counts_of_run("captioned", self.captioned, self.failed, self.before, self.seconds)
        parts += [f"{self.texts_kept} existing text files kept"] * bool(self.texts_kept)
        parts += [f"{self.texts_failed} text files not written"] * bool(self.texts_failed)
        return f"{', '.join(parts)}. {left_out_sentence(self.left_out)}".rstrip()


@dataclass
class DataSet:
    """The pictures of a folder, and what the results file knows of them.

    Attributes
    ----------
    names : the pictures, each by its path in the folder.
    done : those whose caption is in the file.
    left_out : files and folders that are no pictures, by kind.
    """

    names: Sequence[str]
    done: frozenset[str]
    left_out: Counter[str]
    journal: Journal

    @property
    def missing(self) -> list[str]:
        """Return the pictures that have no caption."""
        return [name for name in self.names if name not in self.done]


def read_data_set(folder: Path, path: Path | None, settings: dict[str, Any], text: CaptionText) -> DataSet:
    """List the pictures of a folder, and read the results file, which is made if there is none.

    Parameters
    ----------
    path : the results file; None for a run that has none yet, and makes none.

    Raises
    ------
    InvalidInput
        As :func:`caption_folder`.
    """
    left_out: Counter[str] = Counter()
    names = list_pictures(folder, left_out)
    if text.write_txt:
        check_own_texts(folder / name for name in names)
    wording = {"text": text.wording()} if text.wording() else {}
    journal = Journal(path, {"format": FORMAT, "folder": folder.resolve().name} | settings | wording)
    found = {line["picture"] for line in journal.records() if "caption" in line and "picture" in line}
    return DataSet(names, frozenset(found.intersection(names)), left_out, journal)


def plan_folder(folder: Path, path: Path, settings: dict[str, Any], text: CaptionText) -> tuple[list[str], str]:
    """Return which pictures :func:`caption_folder` would ask about, and a sentence; nothing is asked or written."""
    data = read_data_set(folder, path if path.exists() else None, settings, text)
    parts = [f"Would caption {len(data.missing)} of {len(data.names)} pictures"]
    parts += [f"{len(data.done)} captioned before"] * bool(data.done)
    if text.write_txt:
        num_texts = sum(has_text(folder / name) for name in data.names)
        what = "kept" if text.existing_txt == "keep" else "overwritten"
        parts += [f"{num_texts} existing text files would be {what}"] * bool(num_texts)
    sentences = [f"{', '.join(parts)}."]
    if text.wording():
        sentences.append(f"Each caption becomes: {text.apply('...')}")
    return data.missing, " ".join([*sentences, left_out_sentence(data.left_out)]).rstrip()


def caption_folder(
    ask: Ask,
    folder: Path,
    path: Path,
    settings: dict[str, Any],
    text: CaptionText | None = None,
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
    text : what becomes of each caption, and whether it also goes into a .txt file beside its picture. A text file that
        cannot be read or written fails alone; the next run tries again, without asking the model.
    progress : gets the number of pictures that are done and of all.
    on_failure : is told about each picture and text file that fails.

    Raises
    ------
    InvalidInput
        If there are no pictures, two of them share a text file that is to be written, ``path`` belongs to another run,
        or nothing works at all.
    """
    text = text or CaptionText()
    data = read_data_set(folder, path, settings, text)
    run = Captioning(len(data.done), data.left_out)
    if text.write_txt:
        for line in data.journal.records():
            if "caption" in line and line.get("picture") in data.done:
                _add_text(run, folder / line["picture"], line, text, on_failure, count_kept=False)
    answers = ask(Picture(name, folder / name) for name in data.missing) if data.missing else ()
    began = time.monotonic()
    failures = Failures()
    progress(run.before, len(data.names))
    for one in answers:
        line = _line(one, text)
        if text.write_txt and one.answer is not None:
            _add_text(run, folder / one.name, line, text, on_failure)
        data.journal.append([line])
        if one.error is not None:
            on_failure(one.name, one.error)
        failures.count(one)
        run.captioned, run.failed = failures.num_captioned, failures.num_failed
        run.seconds = time.monotonic() - began
        progress(run.before + run.captioned + run.failed, len(data.names))
    data.journal.sort(_in_walking_order)
    return run


def read_captions(path: Path, most: int) -> list[tuple[str, str]]:
    """Return the first pictures of a results file with their captions, in its order."""
    found: list[tuple[str, str]] = []
    with path.open(encoding="utf-8") as file:
        for text in file:
            line = json.loads(text)
            if "caption" in line and len(found) < most:
                found.append((line["picture"], line["caption"]))
    return found


def _add_text(
    run: Captioning,
    picture: Path,
    line: dict[str, Any],
    text: CaptionText,
    on_failure: OnFailure,
    count_kept: bool = True,
) -> None:
    """Write a picture's text file, unless it has one that is to be kept; count what happened."""
    try:
        if text.existing_txt == "overwrite" or read_text(picture) is None:
            write_text(picture, line["caption"])
        elif count_kept:
            run.texts_kept += 1
    except InvalidInput as error:
        run.texts_failed += 1
        on_failure(line["picture"], error)


def _line(one: Captioned, text: CaptionText) -> dict[str, Any]:
    if one.answer is None:
        return {"picture": one.name, "error": str(one.error)}
    line = {"picture": one.name, "caption": text.apply(one.caption), "finish_reason": one.answer.finish_reason}
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
