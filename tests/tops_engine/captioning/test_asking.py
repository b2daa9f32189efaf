"""Test captioning many pictures in batches: which pictures share a batch, and how many are in memory at once."""

import weakref
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.conftest import Picture as MakePicture
from tests.support.usage import token_counts
from tops_engine.answers.report import Answer
from tops_engine.captioning.asking import WINDOW, AnswerBatch, Picture, Question, caption_in_batches
from tops_engine.conversation.messages import user_message
from tops_engine.engine import Engine
from tops_engine.errors import OutOfMemory
from tops_engine.settings import Generation, Pruning

QUESTION = Question("What is this?", Pruning(keep=0.5), Generation(max_tokens=4))


def asked(engine: Engine, question: Question = QUESTION) -> AnswerBatch:
    return partial(engine.batch, pruning=question.pruning, generation=question.generation)


class Watched(Engine):
    """An engine that records which pictures were open at each call."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine.spec)
        self.sizes: list[list[int]] = []
        self.seen: list[weakref.ref[Image.Image]] = []
        self.most_open = 0

    def batch(self, conversations: Sequence[Any], *options: Any, **more: Any) -> Sequence[Answer]:
        pictures = [messages[0]["content"][0]["image"] for messages in conversations]
        self.sizes.append([picture.width * picture.height for picture in pictures])
        self.seen += [weakref.ref(picture) for picture in pictures]
        self.most_open = max(self.most_open, sum(picture() is not None for picture in self.seen))
        return super().batch(conversations, *options, **more)


@pytest.fixture
def paths(tmp_path: Path, picture: MakePicture) -> list[Path]:
    """Write forty pictures of three sizes in turn."""
    paths = [tmp_path / f"{number:02}.png" for number in range(40)]
    for number, path in enumerate(paths):
        picture(30 + 10 * (number % 3), 40, number).save(path)
    return paths


def test_every_picture_gets_the_answer_of_a_single_question(llava_engine: Engine, paths: list[Path]) -> None:
    pictures = [Picture(path.name, path) for path in paths[:6]]
    found = {one.name: one.answer for one in caption_in_batches(asked(llava_engine), pictures, QUESTION.prompt, 4)}
    assert set(found) == {path.name for path in paths[:6]}
    for path in paths[:6]:
        answer = found[path.name]
        alone = llava_engine.chat([user_message(QUESTION.prompt, path)], QUESTION.pruning, QUESTION.generation)
        assert answer is not None
        assert answer.text == alone.text
        assert token_counts(answer) == token_counts(alone) | {"reused_tokens": 0}


def test_pictures_of_like_size_go_together_and_few_are_open(llava_engine: Engine, paths: list[Path]) -> None:
    drawn = 0

    def turns() -> Iterator[Picture]:
        nonlocal drawn
        for path in paths:
            drawn += 1
            yield Picture(path.name, path)

    engine = Watched(llava_engine)
    for given, one in enumerate(caption_in_batches(asked(engine), turns(), QUESTION.prompt, 2)):
        assert one.error is None
        assert drawn - given <= 2 * WINDOW * 2
    turns_of_16 = ([1200, 1600, 2000] * 6)[:16], ([1600, 2000, 1200] * 6)[:16], ([2000, 1200, 1600] * 3)[:8]
    assert [size for sizes in engine.sizes for size in sizes] == [size for turn in turns_of_16 for size in sorted(turn)]
    # Those asked about, and two of the next.
    assert engine.most_open <= 4


def test_a_picture_that_cannot_be_asked_about_fails_alone(llava_engine: Engine, paths: list[Path]) -> None:
    paths[1].write_bytes(b"not a picture")
    paths[2].unlink()
    pictures = [Picture(path.name, path) for path in paths[:4]]
    found = {one.name: one for one in caption_in_batches(asked(llava_engine), pictures, QUESTION.prompt, 4)}
    assert [name for name, one in sorted(found.items()) if one.error] == ["01.png", "02.png"]
    assert "not a picture in a known format" in str(found["01.png"].error)
    assert "There is no picture" in str(found["02.png"].error)


def test_a_batch_that_is_refused_for_one_of_its_pictures_is_asked_one_by_one(
    llava_next_engine: Engine, picture: MakePicture
) -> None:
    """Use a budget of 2 %: less than one of the small picture's 36 tokens, more than one of the large one's 88."""
    pictures = [Picture("small", picture(56, 56)), Picture("large", picture(112, 112))]
    question = Question("What?", Pruning(method="random", keep=0.02), QUESTION.generation)
    found = {
        one.name: one for one in caption_in_batches(asked(llava_next_engine, question), pictures, question.prompt, 2)
    }
    assert "less than one of 36 visual tokens" in str(found["small"].error)
    answer = found["large"].answer
    assert answer is not None
    assert answer.usage is not None
    assert answer.usage.unpruned_visual_tokens == 88


@pytest.mark.parametrize("most", [1, 2])
def test_after_running_out_of_memory_the_pictures_are_asked_about_alone(
    llava_engine: Engine, paths: list[Path], most: int
) -> None:
    sizes = []

    def answer(conversations: Sequence[Any]) -> Sequence[Answer]:
        sizes.append(len(conversations))
        if len(conversations) > most:
            raise OutOfMemory("The device ran out of memory.")
        return list(llava_engine.batch(conversations, QUESTION.pruning, QUESTION.generation))

    pictures = [Picture(path.name, path) for path in paths[:4]]
    found = list(caption_in_batches(answer, pictures, QUESTION.prompt, 4))
    assert sorted(one.name for one in found if one.answer is not None) == [picture.name for picture in pictures]
    assert sizes == [4, 1, 1, 1, 1]


def test_a_picture_that_does_not_fit_in_memory_alone_fails_alone(llava_engine: Engine, paths: list[Path]) -> None:
    def answer(conversations: Sequence[Any]) -> Sequence[Answer]:
        if any(messages[0]["content"][0]["image"].width == 50 for messages in conversations):
            raise OutOfMemory("The device ran out of memory.")
        return list(llava_engine.batch(conversations, QUESTION.pruning, QUESTION.generation))

    pictures = [Picture(path.name, path) for path in paths[:6]]
    found = {one.name: one.error for one in caption_in_batches(answer, pictures, QUESTION.prompt, 6)}
    assert {name for name, error in found.items() if isinstance(error, OutOfMemory)} == {"02.png", "05.png"}
    assert list(found.values()).count(None) == 4
