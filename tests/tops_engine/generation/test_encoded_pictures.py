"""Test the reuse of encoded pictures: how often the vision tower runs, and that answers stay those of a cold engine."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from tests.conftest import Picture
from tests.support.checkpoints import save_llava_next
from tests.support.checkpoints_qwen import save_qwen2_5_vl, save_qwen3_5, save_qwen3_vl
from tests.support.checkpoints_video import save_onevision
from tests.support.methods import on_pictures
from tests.support.usage import token_counts
from tops_engine.answers.report import Answer
from tops_engine.conversation.messages import Message, user_message
from tops_engine.engine import Engine
from tops_engine.families import Prompt
from tops_engine.generation.encoded_pictures import EncodedPicture, EncodedPictures, Key
from tops_engine.methods import METHODS, Method, Selection, VisualTokens
from tops_engine.settings import Generation, ModelSpec, Pruning
from tops_engine.tower import WHOLE_TOWER, TowerOptions

GENERATION = Generation(max_tokens=4)


@contextmanager
def tower_runs(engine: Engine) -> Iterator[list[int]]:
    """Collect how many pictures each run of the vision tower sees."""
    runs: list[int] = []
    family, encode = engine.family, engine.family.encode

    def counted(prompts: Sequence[Prompt], options: TowerOptions = WHOLE_TOWER) -> Any:
        runs.append(sum(len(prompt.spans) for prompt in prompts))
        return encode(prompts, options)

    family.encode = counted  # type: ignore[method-assign]
    try:
        yield runs
    finally:
        del family.encode


def steps(pictures: Sequence[Image.Image], budgets: Sequence[float]) -> list[list[Message]]:
    """Return the prompts of an agent that sees a new picture at each step; older ones have smaller budgets."""
    return [
        [user_message("What?", *pictures[:number], keep=list(reversed(budgets[:number])))]
        for number in range(1, len(pictures) + 1)
    ]


def same(answer: Answer, cold: Answer) -> None:
    assert answer.token_ids == cold.token_ids
    assert token_counts(answer) | {"reused_tokens": 0} == token_counts(cold)
    for (_, kept), (_, expected) in zip(answer.token_map.stages, cold.token_map.stages, strict=True):
        assert all(torch.equal(one, other) for one, other in zip(kept, expected, strict=True))


def check_steps(engine: Engine, pictures: Sequence[Image.Image], runs: list[int], pruning: Pruning) -> None:
    prompts = steps(pictures, [1.0, 0.6, 0.3])
    cold = []
    for prompt in prompts:
        engine.forget()
        cold.append(engine.chat(prompt, pruning, GENERATION))
    engine.forget()
    with tower_runs(engine) as seen:
        for prompt, expected in zip(prompts, cold, strict=True):
            same(engine.chat(prompt, pruning, GENERATION), expected)
    assert seen == runs


METHODS_BEFORE = sorted(name for name, method in METHODS.items() if method().prunes_before_the_llm)


@pytest.mark.parametrize("method", on_pictures(METHODS_BEFORE))
def test_a_falling_budget_does_not_run_the_tower_again(llava_engine: Engine, picture: Picture, method: str) -> None:
    pictures = [picture(60, 60, seed) for seed in range(3)]
    check_steps(llava_engine, pictures, [1, 1, 1], Pruning(method=method))
    llava_engine.forget()


FAMILIES: dict[str, Callable[[Path], Path]] = {
    "llava-next": save_llava_next,
    "qwen2.5-vl": save_qwen2_5_vl,
    "qwen3-vl": save_qwen3_vl,
    # A recurrent decoder: no prompt is continued, but pictures are known.
    "qwen3.5": save_qwen3_5,
    # A picture among others is not cut into tiles; encoded alone it would be.
    "onevision": save_onevision,
}


@pytest.mark.parametrize(
    "name",
    [
        "qwen3-vl",
        "onevision",
        *(pytest.param(n, marks=pytest.mark.full) for n in FAMILIES if n != "qwen3-vl" and n != "onevision"),
    ],
)
def test_every_kind_of_family_encodes_only_new_pictures(tmp_path: Path, picture: Picture, name: str) -> None:
    engine = Engine.load(ModelSpec(model=str(FAMILIES[name](tmp_path)), device="cpu", cache_mb=100))
    engine.family.model.double()
    pictures = [picture(110, 70, 1), picture(60, 90, 2), picture(60, 250, 3)]
    check_steps(engine, pictures, [1, 2, 3] if name == "onevision" else [1, 1, 1], Pruning())


def test_flops_count_only_what_was_encoded(llava_engine: Engine, picture: Picture) -> None:
    first, second = steps([picture(60, 60, 1), picture(60, 60, 2)], [1.0, 0.5])
    one = llava_engine.chat(first, generation=GENERATION).flops.vision
    assert llava_engine.chat(second, generation=GENERATION).flops.vision == one > 0
    assert llava_engine.chat(second, generation=GENERATION).flops.vision == 0
    llava_engine.forget()
    assert llava_engine.chat(second, generation=GENERATION).flops.vision == 2 * one
    llava_engine.forget()


def test_a_signal_that_was_not_kept_runs_the_tower_again(llava_engine: Engine, picture: Picture) -> None:
    class Undeclared(Method):
        """Keep the first tokens, after reading the attention."""

        name = "undeclared"
        source = "this test"

        def select_visual(self, images: Sequence[VisualTokens], counts: Sequence[int]) -> list[Selection]:
            return [Selection.highest(image.vision_attention(), k) for image, k in zip(images, counts, strict=True)]

    try:
        pictures = [picture(60, 60, seed) for seed in range(3)]
        check_steps(llava_engine, pictures, [1, 1, 2, 1, 3], Pruning(method="undeclared"))
    finally:
        METHODS.remove("undeclared")
        llava_engine.forget()


def test_another_question_reads_the_picture_anew_but_does_not_encode_it(llava_engine: Engine, picture: Picture) -> None:
    pruning = Pruning(method="cdpruner", keep=0.5)
    questions = [[user_message(text, picture(60, 60, 1))] for text in ("What is red?", "How many squares?")]
    cold = []
    for question in questions:
        llava_engine.forget()
        cold.append(llava_engine.chat(question, pruning, GENERATION))
    llava_engine.forget()
    with tower_runs(llava_engine) as seen:
        for question, expected in zip(questions, cold, strict=True):
            same(llava_engine.chat(question, pruning, GENERATION), expected)
    assert seen == [1]
    llava_engine.forget()


def encoded(num_floats: int, **signals: torch.Tensor) -> EncodedPicture:
    return EncodedPicture(torch.zeros(num_floats), (), dict(signals))


def key(number: int) -> Key:
    return bytes([number]), 1, ((1, 1),), WHOLE_TOWER


def test_pictures_are_bounded_and_the_oldest_goes_first() -> None:
    pictures = EncodedPictures(max_bytes=100)
    for number in range(3):
        pictures.store(key(number), encoded(10))
    assert pictures.num_bytes == 80
    assert [pictures.get(key(number)) is not None for number in range(3)] == [False, True, True]
    pictures.get(key(1))
    pictures.store(key(3), encoded(5, vision_attention=torch.zeros(5)))
    assert [pictures.get(key(number)) is not None for number in range(4)] == [False, True, False, True]
    pictures.store(key(4), encoded(26))
    assert pictures.get(key(4)) is None
    pictures.limit(50)
    assert pictures.num_bytes == 40
    pictures.clear()
    assert pictures.num_bytes == 0


def test_a_known_picture_keeps_its_signals() -> None:
    pictures = EncodedPictures(max_bytes=1000)
    pictures.store(key(0), encoded(10, vision_attention=torch.zeros(5)))
    pictures.store(key(0), encoded(10, tiles=torch.zeros(5)))
    known = pictures.get(key(0))
    assert known is not None
    assert set(known.signals) == {"vision_attention", "tiles"}
