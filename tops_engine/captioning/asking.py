"""Ask the same question about many pictures, batch after batch."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

from tops_engine.answers.base import BaseAnswer
from tops_engine.conversation.messages import Message, user_message
from tops_engine.errors import InvalidImage, InvalidInput, OutOfMemory, TopsError
from tops_engine.media.images import ImageSource, num_pixels, open_image
from tops_engine.settings import Generation, Pruning

#: Batches whose pictures are sorted by size together.
WINDOW = 8

#: So many failures before the first caption, of pictures that could be opened, are not the fault of the pictures.
HOPELESS = 20

#: Answers several conversations together.
AnswerBatch = Callable[[Sequence[Sequence[Message]]], Sequence[BaseAnswer]]

_Item = TypeVar("_Item")


@dataclass(frozen=True)
class Question:
    """The question about every picture, with its settings."""

    prompt: str
    pruning: Pruning | None
    generation: Generation


@dataclass(frozen=True)
class Picture:
    """A picture and its name; ``source`` is opened when its turn comes."""

    name: str
    source: ImageSource


@dataclass(frozen=True)
class Captioned:
    """A picture's answer, or why it has none."""

    name: str
    answer: BaseAnswer | None = None
    error: TopsError | None = None

    @classmethod
    def of(cls, name: str, answer: BaseAnswer) -> "Captioned":
        """Return a picture's answer; reasoning without an answer is an error."""
        if answer.text or not answer.reasoning:
            return cls(name, answer)
        sentence = "The model wrote only reasoning, and no caption; raise max_tokens, or set thinking."
        return cls(name, error=InvalidInput(sentence))

    @property
    def caption(self) -> str:
        """Return the answer as one line; empty if there is none."""
        return " ".join(self.answer.text.split()) if self.answer is not None else ""


class Failures:
    """Count failures, and end a run in which nothing works."""

    def __init__(self) -> None:
        self.num_captioned = self.num_failed = 0
        self._num_refused = 0

    def count(self, one: Captioned) -> None:
        """Count a picture.

        Raises
        ------
        InvalidInput
            If no picture has a caption yet and ``HOPELESS`` pictures that could be opened have failed: then the fault
            is in the model or the settings.
        """
        if one.error is None:
            self.num_captioned += 1
            return
        self.num_failed += 1
        self._num_refused += not isinstance(one.error, InvalidImage)
        if self._num_refused >= HOPELESS and not self.num_captioned:
            raise InvalidInput(
                f"None of the first {self.num_failed} pictures could be captioned; the last: {one.error}"
            )


def caption_in_batches(
    answer: AnswerBatch, pictures: Iterable[Picture], prompt: str, batch_size: int
) -> Iterator[Captioned]:
    """Ask about ``batch_size`` pictures at a time, in the calling thread, while the next ones are being opened.

    Pictures of similar size share a batch, so that little of it is padding: they come out of order, by at most
    ``WINDOW`` batches. At most two batches of pictures are open at any time. If a batch fails because of one of its
    pictures, or for lack of memory, each of its pictures is asked about alone; a picture that fails alone has its
    error.

    Parameters
    ----------
    answer : answers a batch of conversations, such as ``engine.batch`` with its settings. Any error but
        :class:`InvalidInput` and :class:`OutOfMemory` ends the run.
    """
    for opened in _ahead(map(_opened, _batches(pictures, batch_size))):
        yield from (one for one in opened if isinstance(one, Captioned))
        yield from _ask(answer, [one for one in opened if isinstance(one, Picture)], prompt)


def _ask(answer: AnswerBatch, pictures: Sequence[Picture], prompt: str) -> Iterator[Captioned]:
    if not pictures:
        return
    try:
        answers = answer([[user_message(prompt, picture.source)] for picture in pictures])
    except (InvalidInput, OutOfMemory) as error:
        failure = error
    else:
        for picture, one in zip(pictures, answers, strict=True):
            yield Captioned.of(picture.name, one)
        return
    if len(pictures) == 1:
        yield Captioned(pictures[0].name, error=failure)
    else:
        for picture in pictures:
            yield from _ask(answer, [picture], prompt)


def _batches(pictures: Iterable[Picture], batch_size: int) -> Iterator[list[Picture]]:
    remaining = iter(pictures)
    while window := list(islice(remaining, WINDOW * batch_size)):
        if batch_size > 1:
            # Those that cannot be opened go last: they fill no batch.
            window.sort(key=lambda picture: num_pixels(picture.source) or math.inf)
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
    """Yield the same items, each made in another thread while the one before it is used."""
    with ThreadPoolExecutor(1) as pool:
        following = pool.submit(next, items, None)
        while (item := following.result()) is not None:
            following = pool.submit(next, items, None)
            yield item
