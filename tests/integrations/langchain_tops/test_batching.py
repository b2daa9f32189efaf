"""Batches: one run on the engine, with everything LangChain promises of single calls; cancellation."""

import asyncio
import threading
import time
from typing import Any

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_tops import ChatTOPSLlava

from tests.integrations.langchain_tops.conftest import asking
from tops_engine.engine import Engine, shared_engine
from tops_engine.errors import InvalidImage
from tops_engine.settings import ModelSpec

TEXTS = ["What number is written?", "What colour is the circle?", "Is there a star?"]
BAD = asking("What?", {"type": "image", "url": "/nowhere.png"})


@pytest.fixture
def sizes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many conversations each run on the engine had."""
    seen: list[int] = []
    run = Engine.run

    def noted(self: Engine, requests: Any, *args: Any) -> Any:
        seen.append(len(requests))
        return run(self, requests, *args)

    monkeypatch.setattr(Engine, "run", noted)
    return seen


@pytest.fixture
def endless(monkeypatch: pytest.MonkeyPatch) -> ChatTOPSLlava:
    """mini that never ends an answer by itself."""
    family = shared_engine(ModelSpec(model="mini", device="cpu")).family
    monkeypatch.setattr(family.model.generation_config, "eos_token_id", [10**6])
    return ChatTOPSLlava(model="mini", device="cpu", max_tokens=3000)


def test_a_batch_is_one_run_and_gives_the_single_answers(model: ChatTOPSLlava, photo: Any, sizes: list[int]) -> None:
    questions = [asking(text, photo) for text in TEXTS]
    alone = [model.invoke(question).text for question in questions]
    sizes.clear()
    answers = model.batch(questions)
    assert [answer.text for answer in answers] == alone
    assert sizes == [3]
    assert len({answer.id for answer in answers}) == 3


async def test_an_asynchronous_batch_is_one_run(model: ChatTOPSLlava, photo: Any, sizes: list[int]) -> None:
    questions = [asking(text, photo) for text in TEXTS]
    answers = await model.abatch(questions)
    assert sizes == [3]
    assert [answer.text for answer in answers] == [answer.text for answer in model.batch(questions)]


def test_chains_and_bound_models_batch_as_well(model: ChatTOPSLlava, sizes: list[int]) -> None:
    chain = ChatPromptTemplate.from_messages([("user", "{text}")]) | model.bind(keep=0.3) | StrOutputParser()
    assert len(chain.batch([{"text": text} for text in TEXTS])) == 3
    assert sizes == [3]


def test_max_concurrency_bounds_a_run(model: ChatTOPSLlava, sizes: list[int]) -> None:
    model.batch(["Hello"] * 5, {"max_concurrency": 2})
    assert sizes == [2, 2, 1]
    sizes.clear()
    model.batch(["Hello"] * 10)
    assert sizes == [8, 2]
    assert model.batch([]) == []


def test_what_one_input_does_wrong_is_not_the_others_error(model: ChatTOPSLlava, photo: Any) -> None:
    good = asking(TEXTS[0], photo)
    first, error, second = model.batch([good, BAD, good], return_exceptions=True)
    assert first.text == second.text == "5"
    assert isinstance(error, InvalidImage)
    with pytest.raises(InvalidImage):
        model.batch([good, BAD])
    too_long = "word " * 9000
    answers = model.batch([good, too_long, good], return_exceptions=True)
    assert [type(answer).__name__ for answer in answers] == ["AIMessage", "ContextLengthError", "AIMessage"]


async def test_asynchronous_errors_are_told_apart_too(model: ChatTOPSLlava, photo: Any) -> None:
    answers = await model.abatch([asking(TEXTS[0], photo), BAD], return_exceptions=True)
    assert [type(answer).__name__ for answer in answers] == ["AIMessage", "InvalidImage"]


class Counter(BaseCallbackHandler):
    """Counts starts and ends."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def on_chat_model_start(self, *_: Any, **__: Any) -> None:
        self.events.append("start")

    def on_llm_end(self, *_: Any, **__: Any) -> None:
        self.events.append("end")

    def on_llm_error(self, *_: Any, **__: Any) -> None:
        self.events.append("error")


def test_each_input_has_its_own_config(model: ChatTOPSLlava) -> None:
    counters = [Counter(), Counter(), Counter()]
    model.batch(["Hello", "Hello", BAD], [{"callbacks": [c]} for c in counters], return_exceptions=True)
    assert [sorted(counter.events) for counter in counters] == [["end", "start"], ["end", "start"], ["error", "start"]]


def test_cached_answers_are_not_waited_for(sizes: list[int]) -> None:
    model = ChatTOPSLlava(model="mini", device="cpu", cache=InMemoryCache())
    model.invoke("Hello")
    sizes.clear()
    answers = model.batch(["Hello", "What?", "Hello", "Who?"])
    assert sizes == [2]
    assert answers[0].text == answers[2].text


async def test_streaming_members_of_a_batch_do_not_block_it(model: ChatTOPSLlava) -> None:
    chain = model | StrOutputParser()
    answers = [value async for _, value in chain.abatch_as_completed(["Hello", "Hello"])]
    assert answers[0] == answers[1]
    streaming = ChatTOPSLlava(model="mini", device="cpu", streaming=True)
    assert [answer.text for answer in streaming.batch(["Hello", "Hello"])] == answers


async def test_a_cancelled_task_stops_within_a_token(endless: ChatTOPSLlava) -> None:
    begun = time.perf_counter()
    await endless.ainvoke("Hello", max_tokens=50)
    seconds_a_token = (time.perf_counter() - begun) / 50
    for task in (asyncio.create_task(endless.ainvoke("Hello")), asyncio.create_task(endless.abatch(["Hello", "Hi"]))):
        await asyncio.sleep(20 * seconds_a_token)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    begun = time.perf_counter()
    while any(thread.name == "tops-batch" for thread in threading.enumerate()):
        await asyncio.sleep(seconds_a_token)
    assert time.perf_counter() - begun < 500 * seconds_a_token, "all 3000 would have taken longer"


def test_an_error_that_ends_a_batch_ends_the_writing(endless: ChatTOPSLlava) -> None:
    begun = time.perf_counter()
    endless.invoke("Hello", max_tokens=50)
    seconds_a_token = (time.perf_counter() - begun) / 50
    cache = InMemoryCache()
    begun = time.perf_counter()
    with pytest.raises(InvalidImage):
        endless.model_copy(update={"cache": cache}).batch([BAD, "Hello", "Hi"])
    assert time.perf_counter() - begun < 1000 * seconds_a_token, "all 3000 would have taken longer"
    assert not cache._cache, "half an answer is none"


async def test_an_abandoned_asynchronous_stream_stops(endless: ChatTOPSLlava, monkeypatch: pytest.MonkeyPatch) -> None:
    async for _ in endless.astream("Hello"):
        break
    await asyncio.sleep(0.2)
    assert len((await endless.ainvoke("Hello", max_tokens=3)).text) > 0


def test_a_batch_in_each_of_several_loops(model: ChatTOPSLlava, photo: Any) -> None:
    answers: list[str] = []

    def loop() -> None:
        batch = asyncio.run(model.abatch([asking(TEXTS[0], photo)] * 2))
        answers.extend(answer.text for answer in batch)

    threads = [threading.Thread(target=loop) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == ["5"] * 6
