"""Questions about the pictures or videos of a folder."""

import hashlib
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Self

from tops_engine.conversation.messages import Message, user_message, video_message
from tops_engine.errors import InvalidInput, TopsError, shorten
from tops_engine.files import read_text_file
from tops_engine.media.folders import list_pictures, list_videos
from tops_engine.media.images import open_image
from tops_engine.media.videos import open_video

#: Reasons that an error about a whole folder quotes.
MOST_REASONS = 3


@dataclass(frozen=True)
class Question:
    """One prompt about one picture.

    Attributes
    ----------
    picture : the picture's path inside the folder.
    digest : hash of the file's bytes; a picture that was replaced under the same name is another picture.
    """

    picture: str
    digest: str
    prompt: str
    messages: list[Message]


@dataclass
class DataSet:
    """The pictures of a folder; every prompt is asked about each.

    Attributes
    ----------
    kind : what the files are, for sentences.
    pictures : sorted by path, including those in sub-folders, without hidden files.
    skipped : the pictures that could not be read or asked about, with the reason; filled while questions are read.
    left_out : files and folders that are no pictures, by kind.
    """

    kind: ClassVar[str] = "pictures"

    folder: Path
    pictures: list[Path]
    prompts: list[str]
    skipped: dict[str, str] = field(default_factory=dict)
    left_out: Counter[str] = field(default_factory=Counter)

    @classmethod
    def read(cls, folder: Path, prompts: Path | None, question: str | None = None) -> Self:
        """Find the pictures of a folder, and read the prompts file or take the one question.

        Parameters
        ----------
        prompts : a text file with one prompt a line.

        Raises
        ------
        InvalidInput
            If the folder does not exist, holds no picture, or there is nothing to ask.
        """
        left_out: Counter[str] = Counter()
        asked = cls._read_asked(folder, prompts, question)
        return cls(folder, [folder / name for name in list_pictures(folder, left_out)], asked, left_out=left_out)

    @classmethod
    def _read_asked(cls, folder: Path, prompts: Path | None, question: str | None) -> list[str]:
        if (prompts is None) == (question is None):
            about = f"{cls.kind} in {shorten(folder)}"
            raise InvalidInput(f"Give either one question about the {about}, or --prompts FILE.")
        return read_prompts(prompts) if prompts is not None else [str(question)]

    def __len__(self) -> int:
        return len(self.pictures) * len(self.prompts)

    def questions(self) -> Iterator[Question]:
        """Yield the questions picture by picture, with one picture in memory at a time.

        Pictures that cannot be read are added to ``skipped``.
        """
        for path in self.pictures:
            yield from self._questions_about(path, self.prompts)

    def shuffled(self, seed: int) -> Iterator[Question]:
        """Yield the questions in a random order that follows from the seed, so that the first ones are a sample.

        A picture is read again for each of its questions. Those that cannot be read are added to ``skipped``.
        """
        pairs = [(path, prompt) for path in self.pictures for prompt in self.prompts]
        random.Random(seed).shuffle(pairs)
        for path, prompt in pairs:
            yield from self._questions_about(path, [prompt])

    def _questions_about(self, path: Path, prompts: Sequence[str]) -> Iterator[Question]:
        relative = path.relative_to(self.folder).as_posix()
        try:
            content = path.read_bytes()
            ask = self._opened(content)
        except (TopsError, OSError) as error:
            self.skipped[relative] = str(error)
            return
        digest = self._digest(content)
        for prompt in prompts:
            yield Question(relative, digest, prompt, [ask(prompt)])

    def _opened(self, content: bytes) -> Callable[[str], Message]:
        """Read a file of the data set; return what asks a prompt about it."""
        picture = open_image(content)
        return lambda prompt: user_message(prompt, picture)

    def _digest(self, content: bytes) -> str:
        return hashlib.sha256(content).hexdigest()[:16]

    def nothing_asked(self) -> InvalidInput:
        """Return the error for a run in which every picture was skipped; it quotes the first reasons."""
        reasons = [f"{picture}: {reason}" for picture, reason in self.skipped.items()][:MOST_REASONS]
        return InvalidInput(f"None of the {self.kind} in {self.folder} could be asked about. {' '.join(reasons)}")


@dataclass
class Clips(DataSet):
    """The videos of a folder, in place of pictures.

    Attributes
    ----------
    num_frames, fps : which frames of each are taken, as for :func:`tops_engine.media.videos.open_video`. A video of
        which other frames are taken counts as another video.
    """

    kind: ClassVar[str] = "videos"

    num_frames: int | None = None
    fps: float | None = None

    @classmethod
    def read_videos(
        cls, folder: Path, prompts: Path | None, question: str | None, num_frames: int | None, fps: float | None
    ) -> Self:
        """Find the videos of a folder; parameters and errors are those of :meth:`DataSet.read`."""
        left_out: Counter[str] = Counter()
        asked = cls._read_asked(folder, prompts, question)
        videos = [folder / name for name in list_videos(folder, left_out)]
        return cls(folder, videos, asked, left_out=left_out, num_frames=num_frames, fps=fps)

    def _opened(self, content: bytes) -> Callable[[str], Message]:
        video = open_video(content, self.num_frames, self.fps)
        return lambda prompt: video_message(prompt, video)

    def _digest(self, content: bytes) -> str:
        return f"{super()._digest(content)}-{self.num_frames}-{self.fps}"


def read_prompts(path: Path) -> list[str]:
    """Read the lines of a text file, each once, without blank lines.

    Raises
    ------
    InvalidInput
        If the file cannot be read, is not UTF-8 text, or is empty.
    """
    try:
        text = read_text_file(path, "utf-8-sig")
    except OSError as error:
        raise InvalidInput(f"The prompts file {shorten(path)} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise InvalidInput(f"The prompts file {shorten(path)} is not UTF-8 text.") from error
    prompts = list(dict.fromkeys(line.strip() for line in text.splitlines() if line.strip()))
    if not prompts:
        raise InvalidInput(f"The prompts file {shorten(path)} is empty; write one question a line.")
    return prompts
