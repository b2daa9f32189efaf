"""Find the pictures or videos of a folder: one walker for the command line, the nodes and TOPS Studio."""

import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from tops_engine.errors import InvalidInput, shorten
from tops_engine.media.formats import SUFFIXES, VIDEO_SUFFIXES, is_picture_name, is_video_name

#: Kinds of left-out files that a sentence names.
MOST_KINDS = 8


def picture_files(
    folder: Path, left_out: Counter[str] | None = None, counts: Callable[[str], bool] = is_picture_name
) -> Iterator[str]:
    """Yield the paths of the pictures in a folder and its subfolders, relative to it, sorted by their parts.

    A file is a picture if its name has one of ``SUFFIXES``. Hidden files and folders are left out. Links to files are
    followed, links to folders are not.

    Parameters
    ----------
    left_out : gets the number of files and folders that were left out, by kind: a file name ending such as ``.txt``,
        ``no ending``, ``hidden`` or ``link to a folder``.
    counts : whether a file of this name counts; another function finds other files.

    Raises
    ------
    InvalidInput
        If the folder or one of its subfolders cannot be read.
    """
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise InvalidInput(f"The folder {folder} cannot be read: {error.strerror}.") from error
    for entry in entries:
        hidden = entry.name.startswith(".")
        if not hidden and entry.is_dir(follow_symlinks=False):
            yield from (f"{entry.name}/{inside}" for inside in picture_files(folder / entry.name, left_out, counts))
        elif not hidden and counts(entry.name) and not entry.is_dir():
            yield entry.name
        elif left_out is not None:
            left_out[_kind(entry, hidden)] += 1


def _kind(entry: os.DirEntry[str], hidden: bool) -> str:
    if hidden:
        return "hidden"
    if entry.is_dir():
        return "link to a folder"
    return os.path.splitext(entry.name)[1].lower() or "no ending"


def list_pictures(folder: Path, left_out: Counter[str] | None = None) -> list[str]:
    """Return what :func:`picture_files` yields.

    Raises
    ------
    InvalidInput
        If there is no such folder, it cannot be read, or it holds no picture.
    """
    return _listed(folder, left_out, is_picture_name, f"pictures in {shorten(folder)} ({', '.join(SUFFIXES[:9])} ...)")


def list_videos(folder: Path, left_out: Counter[str] | None = None) -> list[str]:
    """Return the videos of a folder, as :func:`list_pictures` does its pictures; it raises the same errors."""
    named = f"videos in {shorten(folder)} ({', '.join(VIDEO_SUFFIXES[:6])} ...)"
    return _listed(folder, left_out, is_video_name, named)


def holds_only_videos(folder: Path) -> bool:
    """Return whether a folder has videos and no pictures."""
    return any(picture_files(folder, counts=is_video_name)) and not any(picture_files(folder))


def _listed(folder: Path, left_out: Counter[str] | None, counts: Callable[[str], bool], what: str) -> list[str]:
    if not folder.is_dir():
        raise InvalidInput(f"There is no folder {folder}.")
    left_out = Counter() if left_out is None else left_out
    names = list(picture_files(folder, left_out, counts))
    if not names:
        raise InvalidInput(f"There are no {what}. {left_out_sentence(left_out) or 'It is empty.'}")
    return names


def left_out_sentence(left_out: Counter[str]) -> str:
    """Return what a walk left out as one sentence, most frequent kind first; empty if it left out nothing."""
    if not left_out:
        return ""
    kinds = sorted(left_out.items(), key=lambda item: (-item[1], item[0]))
    parts = [f"{count} {kind}" for kind, count in kinds[:MOST_KINDS]]
    if len(kinds) > MOST_KINDS:
        parts.append(f"{sum(count for _, count in kinds[MOST_KINDS:])} of other kinds")
    return f"Left out: {', '.join(parts)}."


def counts_of_run(word: str, done: int, failed: int, before: int, seconds: float, size: str | None = None) -> list[str]:
    """Return what a run did with the pictures of a folder, as the parts of a sentence.

    Parameters
    ----------
    word : what is done to a picture, such as ``captioned``.
    done, failed : pictures of this run.
    before : pictures that an earlier run has done.
    seconds : duration of this run.
    size : of what it wrote, with its unit.
    """
    if not (done or failed):
        return [f"Nothing to do: all {before} pictures are {word}"]
    rate = f"{done / seconds if seconds else 0.0:.2f} a second"
    parts = [f"{done} {word} in {seconds:.1f} s ({f'{rate}, {size}' if size else rate})"]
    parts += [f"{before} {word} before"] * bool(before)
    parts += [f"{failed} failed"] * bool(failed)
    return parts
