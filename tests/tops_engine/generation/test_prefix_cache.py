"""Test the prefix cache: a later prompt about the same picture gets the same answer and reads fewer tokens."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tests.conftest import Picture
from tests.support.checkpoints import save_llava, save_llava_next
from tests.support.checkpoints_qwen import save_qwen2_5_vl, save_qwen3_vl
from tests.support.methods import on_pictures
from tops_engine.answers.report import Answer
from tops_engine.conversation.messages import Message, user_message
from tops_engine.engine import Engine
from tops_engine.methods import METHODS
from tops_engine.settings import Generation, ModelSpec, Pruning

GENERATION = Generation(max_tokens=6)

CHECKPOINTS: dict[str, tuple[Callable[..., Path], str, dict[str, Any], str]] = {
    "llava": (save_llava, "llama", {}, "sdpa"),
    "llava-eager": (save_llava, "llama", {}, "eager"),
    "llava-sliding": (save_llava, "mistral", {"sliding_window": 20}, "sdpa"),
    "next": (save_llava_next, "qwen2", {}, "sdpa"),
    "qwen2.5-vl": (save_qwen2_5_vl, "qwen2", {}, "sdpa"),
    "qwen3-vl": (save_qwen3_vl, "qwen3", {}, "sdpa"),
}


@pytest.fixture(scope="module", params=CHECKPOINTS, ids=str)
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """Build the engine in float64, where rounding after a cached prefix is far below the gaps between tokens."""
    save, kind, options, attention = CHECKPOINTS[request.param]
    folder = save(tmp_path_factory.mktemp("checkpoint"), kind, **options)
    loaded = Engine.load(ModelSpec(model=str(folder), device="cpu", attention=attention))
    loaded.family.model.double()
    return loaded


@pytest.fixture(autouse=True)
def nothing_kept(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    for name in ("engine", "llava_engine"):
        if name in request.fixturenames:
            request.getfixturevalue(name).forget()


@pytest.fixture(scope="session")
def turns(picture: Picture) -> list[list[Message]]:
    """Return conversations that each begin like the previous one: other questions, another turn, another picture."""
    wide, tall = picture(110, 70, 1), picture(60, 90, 2)
    first = user_message("What is shown in this picture?", wide)
    answered: list[Message] = [first, {"role": "assistant", "content": "A red circle"}]
    return [
        [first],
        [user_message("What digits?", wide)],
        [user_message("What is shown in this picture? And where?", wide)],
        [first],
        [*answered, user_message("and the digits?")],
        [*answered, user_message("Closer:", tall)],
        [user_message("Compare.", wide, tall)],
        [user_message("Compare.", wide, wide)],
    ]


def cold(engine: Engine, messages: list[Message], pruning: Pruning) -> Answer:
    engine.forget()
    return engine.chat(messages, pruning, GENERATION)


def same(answer: Answer, expected: Answer) -> None:
    assert answer.token_ids == expected.token_ids
    assert answer.usage.stages == expected.usage.stages
    for (_, kept), (_, expected_kept) in zip(answer.token_map.stages, expected.token_map.stages, strict=True):
        assert all(torch.equal(one, other) for one, other in zip(kept, expected_kept, strict=True))


@pytest.mark.parametrize(
    ("keep", "positions"),
    [
        (1.0, "contiguous"),
        (0.4, "contiguous"),
        (0.4, "original"),
        pytest.param(1.0, "original", marks=pytest.mark.full),
    ],
)
def test_going_on_answers_as_reading_anew(
    engine: Engine, turns: list[list[Message]], keep: float, positions: Any
) -> None:
    pruning = Pruning(keep=keep, positions=positions)
    expected = [cold(engine, messages, pruning) for messages in turns]
    engine.forget()
    warm = [engine.chat(messages, pruning, GENERATION) for messages in turns]

    for answer, reference in zip(warm, expected, strict=True):
        same(answer, reference)
    assert [answer.usage.reused_tokens > 0 for answer in warm] == [False] + 7 * [True]
    assert all(answer.usage.reused_tokens == 0 for answer in expected)


@pytest.mark.parametrize("name", on_pictures(sorted(METHODS)))
def test_every_method_chooses_as_when_reading_anew(llava_engine: Engine, turns: list[list[Message]], name: str) -> None:
    pruning = Pruning(method=name, keep=1.0 if name in ("none", "resize") else 0.6)
    expected = [cold(llava_engine, messages, pruning) for messages in turns[:5]]
    llava_engine.forget()
    for messages, reference in zip(turns, expected, strict=False):
        same(llava_engine.chat(messages, pruning, GENERATION), reference)


def test_the_report_counts_only_what_ran(llava_engine: Engine, turns: list[list[Message]]) -> None:
    pruning = Pruning(method="random", keep=0.4)
    llava_engine.chat(turns[0], pruning, GENERATION)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        answer = llava_engine.chat(turns[1], pruning, GENERATION)

    assert answer.usage.reused_tokens > sum(answer.usage.stages[0].visual_tokens)
    assert answer.flops.vision == 0
    assert answer.timings.vision < 1e-3
    assert answer.flops.total == counter.get_total_flops()


def test_another_picture_pruning_or_beginning_is_read_anew(
    llava_engine: Engine, turns: list[list[Message]], picture: Picture
) -> None:
    llava_engine.chat(turns[0], Pruning(keep=0.4), GENERATION)
    other = picture(110, 70, 9)
    question = "What is shown in this picture?"
    changed: Image.Image = turns[0][0]["content"][0]["image"].copy()
    changed.putpixel((0, 0), (255, 0, 0) if changed.getpixel((0, 0)) != (255, 0, 0) else (0, 0, 0))
    cases: list[tuple[list[Message], Pruning]] = [
        ([user_message(question, other)], Pruning(keep=0.4)),
        ([user_message(question, changed)], Pruning(keep=0.4)),
        (turns[0], Pruning(keep=0.3)),
        (turns[0], Pruning(keep=0.4, positions="original")),
        ([{"role": "user", "content": [{"type": "text", "text": "See:"}, *turns[0][0]["content"]]}], Pruning(keep=0.4)),
        ([user_message(question)], Pruning(keep=0.4)),
    ]
    for messages, pruning in cases:
        assert llava_engine.chat(messages, pruning, GENERATION).usage.reused_tokens == 0
    assert llava_engine.chat(turns[0], Pruning(keep=0.4), GENERATION).usage.reused_tokens > 0


def test_unloading_offloading_and_forgetting_drop_what_was_kept(llava_folder: Path, turns: list[list[Message]]) -> None:
    engine = Engine.load(ModelSpec(model=str(llava_folder), device="cpu"))
    for drop in (engine.forget, engine.offload, engine.unload):
        engine.chat(turns[0], Pruning(keep=0.4), GENERATION)
        assert engine.chat(turns[0], Pruning(keep=0.4), GENERATION).usage.reused_tokens > 0
        drop()
        assert engine.chat(turns[0], Pruning(keep=0.4), GENERATION).usage.reused_tokens == 0


def test_memory_is_bounded_and_the_oldest_goes_first(llava_folder: Path, picture: Picture) -> None:
    questions = [[user_message("What?", picture(60, 60, seed))] for seed in range(4)]
    counts = []
    for cache_mb in (0, 0.25, 0.5, 0.75, 1, 1.5, 2, 2.5, 3, 4, 5):
        engine = Engine.load(ModelSpec(model=str(llava_folder), device="cpu", cache_mb=cache_mb))
        for question in questions:
            answer = engine.chat(question, Pruning(keep=0.4), GENERATION)
            assert answer.usage.cache_bytes == engine.cache_bytes <= cache_mb * 2**20
        newest_first = [engine.chat(question, Pruning(keep=0.4), GENERATION) for question in reversed(questions)]
        reused = [answer.usage.reused_tokens > 0 for answer in newest_first]
        assert reused == sorted(reused, reverse=True)
        counts.append(sum(reused))
        engine.forget()
        assert engine.cache_bytes == 0
    assert counts == sorted(counts)
    assert set(counts) == {0, 1, 2, 3, 4}


def test_abandoned_streams_and_several_threads_leave_answers_as_they_are(
    llava_engine: Engine, turns: list[list[Message]]
) -> None:
    pruning = Pruning(keep=0.4)
    expected = [cold(llava_engine, messages, pruning).token_ids for messages in turns]
    stream = llava_engine.stream(turns[0], pruning, GENERATION)
    next(stream)
    del stream
    start = threading.Barrier(4)

    def ask(number: int) -> list[int]:
        if number < 4:
            start.wait()
        return llava_engine.chat(turns[number % len(turns)], pruning, GENERATION).token_ids

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(ask, range(24)))
    assert answers == [expected[number % len(turns)] for number in range(24)]


def test_a_picture_in_two_files_is_one_picture(
    llava_engine: Engine, turns: list[list[Message]], tmp_path: Path
) -> None:
    image: Image.Image = turns[0][0]["content"][0]["image"]
    image.save(tmp_path / "a.png")
    image.save(tmp_path / "b.png", compress_level=1)
    llava_engine.chat([user_message("What?", tmp_path / "a.png")], Pruning(keep=0.4), GENERATION)
    answer = llava_engine.chat([user_message("Where?", tmp_path / "b.png")], Pruning(keep=0.4), GENERATION)
    assert answer.usage.reused_tokens > 0
