"""The user's own pictures and questions."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from tops_engine.conversation.messages import Message, user_message
from tops_engine.errors import InvalidInput, TopsError
from tops_engine.media.folders import list_pictures
from tops_engine.media.images import open_image


@dataclass(frozen=True)
class Question:
    """One prompt about one picture.

    Attributes
    ----------
    picture : its path inside the folder.
    digest : of the file's bytes, so that results are never those of another picture of the same name.
    """

    picture: str
    digest: str
    prompt: str
    messages: list[Message]


@dataclass
class DataSet:
    """The pictures of a folder, each asked every prompt.

    Attributes
    ----------
    pictures : sorted by path; files in sub-folders belong to it, hidden ones do not.
    skipped : pictures that could not be read or asked about, and why; filled while the questions are read.
    """

    folder: Path
    pictures: list[Path]
    prompts: list[str]
    skipped: dict[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path, prompts: Path | None, question: str | None = None) -> Self:
        """Find the pictures of a folder and read its prompts, one a line, or take the one question.

        Raises
        ------
        InvalidInput
            If there is no folder, no picture in it, or nothing to ask.
        """
        if (prompts is None) == (question is None):
            raise InvalidInput(f"Give either one question about the pictures in {folder}, or --prompts FILE.")
        pictures = [folder / name for name in list_pictures(folder)]
        return cls(folder, pictures, read_prompts(prompts) if prompts is not None else [str(question)])

    def __len__(self) -> int:
        return len(self.pictures) * len(self.prompts)

    def questions(self) -> Iterator[Question]:
        """Picture by picture, one in memory at a time; those that cannot be read are noted in ``skipped``."""
        for path in self.pictures:
            relative = path.relative_to(self.folder).as_posix()
            try:
                content = path.read_bytes()
                picture = open_image(content)
            except (TopsError, OSError) as error:
                self.skipped[relative] = str(error)
                continue
            digest = hashlib.sha256(content).hexdigest()[:16]
            for prompt in self.prompts:
                yield Question(relative, digest, prompt, [user_message(prompt, picture)])


def read_prompts(path: Path) -> list[str]:
    """The lines of a text file that are not blank, each once."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InvalidInput(f"The prompts file {path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise InvalidInput(f"The prompts file {path} is not UTF-8 text.") from error
    prompts = list(dict.fromkeys(line.strip() for line in text.splitlines() if line.strip()))
    if not prompts:
        raise InvalidInput(f"The prompts file {path} is empty; write one question a line.")
    return prompts


def progress_bar(unit: str, console: Console | None) -> Progress:
    """What long commands show on stderr."""
    columns = (TextColumn(unit), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, disable=console is None)


def report_skipped(data: DataSet, console: Console | None) -> None:
    """Say which pictures were left out."""
    for picture, error in data.skipped.items() if console is not None else ():
        assert console is not None
        console.print(f"[yellow]Skipped[/] {escape(picture)}: {escape(error)}", highlight=False, soft_wrap=True)
