"""The same question about many pictures, batch after batch."""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, TypeVar

from tops_engine.answers.report import Answer
from tops_engine.conversation.messages import user_message
from tops_engine.errors import InvalidInput, OutOfMemory, TopsError
from tops_engine.media.images import ImageSource, num_pixels, open_image
from tops_engine.remote import RemoteAnswer
from tops_engine.settings import Generation, Pruning

if TYPE_CHECKING:
    from tops_engine.engine import Engine

#: Batches whose pictures are sorted by size together.
WINDOW = 8

_Item = TypeVar("_Item")


@dataclass(frozen=True)
class Question:
    """What is asked about every picture, and how."""

    prompt: str
    pruning: Pruning | None
    generation: Generation


@dataclass(frozen=True)
class Picture:
    """A picture by its name; ``source`` is opened when its turn comes."""

    name: str
    source: ImageSource


@dataclass(frozen=True)
class Captioned:
    """A picture's answer, or why it has none."""

    name: str
    answer: Answer | RemoteAnswer | None = None
    error: TopsError | None = None

    @property
    def caption(self) -> str:
        """The answer as one line."""
        return " ".join(self.answer.text.split()) if self.answer is not None else ""


def caption_in_batches(
    engine: "Engine", pictures: Iterable[Picture], question: Question, batch_size: int
) -> Iterator[Captioned]:
    """Ask about ``batch_size`` pictures at a time, in the calling thread, while the next ones are being opened.

    Pictures of like size share a batch, so that little of it is padding: they come out of order, by at most
    ``WINDOW`` batches. At most two batches of pictures are open at any time.
    """
    for opened in _ahead(map(_opened, _batches(pictures, batch_size))):
        yield from (one for one in opened if isinstance(one, Captioned))
        yield from _ask(engine, [one for one in opened if isinstance(one, Picture)], question)


def _ask(engine: "Engine", pictures: Sequence[Picture], question: Question) -> list[Captioned]:
    """One call; where it fails because of one of the pictures, each of them alone."""
    if not pictures:
        return []
    conversations = [[user_message(question.prompt, picture.source)] for picture in pictures]
    try:
        answers = engine.batch(conversations, question.pruning, question.generation)
    except (InvalidInput, OutOfMemory) as error:
        if len(pictures) == 1:
            return [Captioned(pictures[0].name, error=error)]
        return [one for picture in pictures for one in _ask(engine, [picture], question)]
    return [Captioned(picture.name, answer) for picture, answer in zip(pictures, answers, strict=True)]


def _batches(pictures: Iterable[Picture], batch_size: int) -> Iterator[list[Picture]]:
    remaining = iter(pictures)
    while window := list(islice(remaining, WINDOW * batch_size)):
        if batch_size > 1:
            window.sort(key=lambda picture: num_pixels(picture.source))
        for begin in range(0, len(window), batch_size):
            yield window[begin : begin + batch_size]


def _opened(pictures: Iterable[Picture]) -> list[Picture | Captioned]:
    opened: list[Picture | Captioned] = []
    for picture in pictures:
        try:
            opened.append(Picture(picture.name, open_image(picture.source)))
        except InvalidInput as error:
            opened.append(Captioned(picture.name, error=error))
    return opened


def _ahead(items: Iterator[_Item]) -> Iterator[_Item]:
    """The same items, each made in another thread while the one before it is used."""
    with ThreadPoolExecutor(1) as pool:
        following = pool.submit(next, items, None)
        while (item := following.result()) is not None:
            following = pool.submit(next, items, None)
            yield item
