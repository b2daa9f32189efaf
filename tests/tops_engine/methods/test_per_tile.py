"""Test all methods that select or merge before the language model: batches, extremes, half precision."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import Picture
from tests.support.methods import on_pictures
from tests.support.usage import token_counts
from tests.support.visual_tokens import random_tokens
from tops_engine.conversation.messages import Message, user_message
from tops_engine.engine import Engine
from tops_engine.methods import METHODS
from tops_engine.settings import Generation, ModelSpec, Pruning

NAMES = [name for name, method in METHODS.items() if method().prunes_before_the_llm]


@pytest.mark.parametrize("method", on_pictures(NAMES))
@pytest.mark.parametrize("name", ["llava_engine", "llava_next_engine"])
def test_a_ragged_batch_chooses_and_answers_as_alone(
    name: str, method: str, picture: Picture, request: pytest.FixtureRequest
) -> None:
    engine: Engine = request.getfixturevalue(name)
    conversations: list[list[Message]] = [
        [user_message("What is shown in this picture?", picture(90, 60))],
        [user_message("What?", picture(60, 60, 1), picture(120, 60, 2))],
        [user_message("Hello")],
    ]
    pruning, generation = Pruning(method=method, keep=0.3), Generation(max_tokens=5)
    together = engine.batch(conversations, pruning, generation)
    for conversation, answer in zip(conversations, together, strict=True):
        engine.forget()
        alone = engine.chat(conversation, pruning, generation)
        assert answer.token_ids == alone.token_ids
        assert token_counts(answer) == token_counts(alone)
        for (_, images), (_, expected) in zip(answer.token_map.stages, alone.token_map.stages, strict=True):
            assert [kept.tolist() for kept in images] == [kept.tolist() for kept in expected]


@pytest.mark.parametrize("method", on_pictures(NAMES))
@given(st.lists(st.integers(1, 9), min_size=1, max_size=4), st.integers(0, 3), st.data())
def test_every_number_of_tokens_can_be_kept(method: str, sizes: list[int], newlines: int, data: st.DataObject) -> None:
    if method == "pooling":
        sizes, newlines = [sum(sizes)], 0
    size = sum(sizes) + newlines
    image = random_tokens(sizes, newlines, has_cls=data.draw(st.booleans()))
    count = data.draw(st.integers(1, size))
    (selection,) = METHODS[method]().select_visual([image], [count])
    indices = selection.indices.tolist()
    assert indices == sorted(set(indices))
    assert len(indices) == count
    assert 0 <= indices[0] <= indices[-1] < size
    if selection.features is not None:
        assert selection.features.shape == (count, image.features.shape[1])
        assert selection.features.isfinite().all()
        if count == size:
            torch.testing.assert_close(selection.features, image.features)
    if selection.order is not None:
        assert sorted(selection.order.tolist()) == indices


@pytest.fixture(scope="module")
def bfloat16_engine(llava_next_folder: Path) -> Engine:
    return Engine.load(ModelSpec(model=str(llava_next_folder), device="cpu", dtype="bfloat16"))


@pytest.mark.parametrize("method", on_pictures(NAMES))
def test_bfloat16_runs(bfloat16_engine: Engine, picture: Picture, method: str) -> None:
    bfloat16_engine.forget()
    answer = bfloat16_engine.chat(
        [user_message("What?", picture(90, 60))], Pruning(method=method, keep=0.2), Generation(max_tokens=2)
    )
    assert answer.usage.layer_average == pytest.approx(0.2 * answer.usage.visual_tokens, abs=0.5)
