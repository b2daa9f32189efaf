"""Eight threads that ask, stream, batch and cancel at random: nothing is lost, and answers are those of one thread."""

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Callable
from random import Random
from typing import Any

import pytest
from langchain_core.messages import HumanMessage
from langchain_tops import ChatTOPSLlava, image_block
from PIL import Image

from tests.fuzz.conversations import SAMPLE
from tests.fuzz.rules import MAX_WAIT, SECONDS_OF_THREADS, SEED, level_memory
from tops_engine.answers.report import Answer
from tops_engine.conversation.messages import Message, user_message
from tops_engine.engine import Engine, shared_engine
from tops_engine.media.images import open_image
from tops_engine.settings import Generation, ModelSpec, Pruning

NUM_THREADS = 8
SPEC = ModelSpec(model="mini", device="cpu")
GENERATION = Generation(max_tokens=12)
QUESTIONS = ("What number is written?", "Is there a red circle?")
PRUNINGS = (Pruning(keep=1.0), Pruning(keep=0.3), Pruning(method="divprune", keep=20))


class Crowd:
    """The calls of several threads, and what came of them.

    Attributes
    ----------
    outcomes : how many calls of each kind ended with an answer, or were cancelled.
    faults : what was wrong.
    """

    def __init__(self, engine: Engine, pictures: list[Image.Image]) -> None:
        self.engine = engine
        self.model = ChatTOPSLlava(model="mini", device="cpu", max_tokens=GENERATION.max_tokens)
        self.cases = [
            (question, picture, pruning) for question in QUESTIONS for picture in pictures for pruning in PRUNINGS
        ]
        self.blocks = {id(picture): image_block(picture) for picture in pictures}
        self.expected = [
            engine.chat([user_message(question, picture)], pruning, GENERATION).text
            for question, picture, pruning in self.cases
        ]
        self.outcomes: Counter[str] = Counter()
        self.faults: list[str] = []
        self.begun = 0
        self._lock = threading.Lock()

    def run(self, number: int, until: float) -> None:
        """Make calls until a time, as one of the threads."""
        random = Random(f"{SEED} {number}")
        calls: list[Callable[[Random], str]] = [
            self.ask, self.ask_and_cancel, self.stream, self.abandon_stream, self.batch, self.invoke, self.ainvoke,
            self.cancel_ainvoke, self.abatch,
        ]  # fmt: skip
        while time.monotonic() < until:
            call = random.choice(calls)
            with self._lock:
                self.begun += 1
            begin = time.monotonic()
            try:
                outcome = call(random)
            except BaseException as error:
                outcome = "failed"
                self.faults.append(f"{call.__name__}: {type(error).__name__}: {error}")
            if time.monotonic() - begin > MAX_WAIT:
                self.faults.append(f"{call.__name__} took {time.monotonic() - begin:.0f} s")
            with self._lock:
                self.outcomes[f"{call.__name__}: {outcome}"] += 1

    def ask(self, random: Random) -> str:
        number, messages, pruning = self._case(random)
        return self._check(number, self.engine.chat(messages, pruning, GENERATION))

    def ask_and_cancel(self, random: Random) -> str:
        number, messages, pruning = self._case(random)
        cancel = threading.Event()
        timer = threading.Timer(random.random() * 0.3, cancel.set)
        timer.start()
        answer = self.engine.chat(messages, pruning, GENERATION, cancel)
        timer.cancel()
        return self._check(number, answer)

    def stream(self, random: Random) -> str:
        number, messages, pruning = self._case(random)
        *pieces, answer = self.engine.stream(messages, pruning, GENERATION)
        assert isinstance(answer, Answer)
        assert "".join(map(str, pieces)) == answer.text
        return self._check(number, answer)

    def abandon_stream(self, random: Random) -> str:
        number, messages, pruning = self._case(random)
        stream = self.engine.stream(messages, pruning, GENERATION)
        begun = ""
        for _ in range(random.randint(0, 2)):
            piece = next(stream)
            begun += piece if isinstance(piece, str) else ""
            if not isinstance(piece, str):
                break
        del stream
        assert self.expected[number].startswith(begun), f"{begun!r} instead of {self.expected[number]!r}"
        return "abandoned"

    def batch(self, random: Random) -> str:
        first, _, pruning = self._case(random)
        numbers = [number for number, case in enumerate(self.cases) if case[2] == self.cases[first][2]]
        asked = random.sample(numbers, 3)
        answers = self.engine.batch([self._messages(number) for number in asked], pruning, GENERATION)
        for number, answer in zip(asked, answers, strict=True):
            self._check(number, answer)
        return "answered"

    def invoke(self, random: Random) -> str:
        number, messages, options = self._langchain_case(random)
        return self._check_text(number, self.model.invoke(messages, **options).text)

    def ainvoke(self, random: Random) -> str:
        number, messages, options = self._langchain_case(random)
        return self._check_text(number, asyncio.run(self.model.ainvoke(messages, **options)).text)

    def cancel_ainvoke(self, random: Random) -> str:
        number, messages, options = self._langchain_case(random)

        async def cancelled() -> str:
            try:
                async with asyncio.timeout(random.random() * 0.3):
                    return self._check_text(number, (await self.model.ainvoke(messages, **options)).text)
            except TimeoutError:
                return "cancelled"

        return asyncio.run(cancelled())

    def abatch(self, random: Random) -> str:
        cases = [self._langchain_case(random) for _ in range(3)]
        options = cases[0][2]
        same = [case for case in cases if case[2] == options]
        answers = asyncio.run(self.model.abatch([messages for _, messages, _ in same], **options))
        for (number, _, _), answer in zip(same, answers, strict=True):
            self._check_text(number, answer.text)
        return "answered"

    def _case(self, random: Random) -> tuple[int, list[Message], Pruning]:
        number = random.randrange(len(self.cases))
        return number, self._messages(number), self.cases[number][2]

    def _messages(self, number: int) -> list[Message]:
        question, picture, _ = self.cases[number]
        return [user_message(question, picture)]

    def _langchain_case(self, random: Random) -> tuple[int, list[HumanMessage], dict[str, Any]]:
        number = random.randrange(len(self.cases))
        question, picture, pruning = self.cases[number]
        message = HumanMessage([self.blocks[id(picture)], {"type": "text", "text": question}])
        return number, [message], pruning.model_dump(exclude_unset=True)

    def _check(self, number: int, answer: Answer) -> str:
        if answer.finish_reason == "cancelled":
            assert self.expected[number].startswith(answer.text)
            return "cancelled"
        return self._check_text(number, answer.text)

    def _check_text(self, number: int, text: str) -> str:
        assert text == self.expected[number], f"{text!r} instead of {self.expected[number]!r}"
        return "answered"


@pytest.fixture(scope="module")
def crowd() -> Crowd:
    picture = open_image(SAMPLE)
    pictures = [picture, picture.rotate(90)]
    return Crowd(shared_engine(SPEC), pictures)


def test_threads_that_cancel_at_random_lose_nothing(crowd: Crowd) -> None:
    with level_memory("threads"):
        until = time.monotonic() + SECONDS_OF_THREADS
        threads = [threading.Thread(target=crowd.run, args=(n, until), daemon=True) for n in range(NUM_THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(SECONDS_OF_THREADS + MAX_WAIT)
    print(f"{crowd.begun:,} calls in {SECONDS_OF_THREADS} s: {dict(sorted(crowd.outcomes.items()))}")
    assert not [thread for thread in threads if thread.is_alive()], "a call hangs"
    assert not crowd.faults, f"{len(crowd.faults)} of {crowd.begun} calls: {crowd.faults[:5]}"
    assert sum(crowd.outcomes.values()) == crowd.begun > NUM_THREADS
    for number, (question, picture, pruning) in enumerate(crowd.cases):
        answer = crowd.engine.chat([user_message(question, picture)], pruning, GENERATION)
        assert answer.text == crowd.expected[number], "the engine stays as it was"
