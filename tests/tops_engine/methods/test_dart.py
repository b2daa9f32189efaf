"""Compare DART with its definition written out, and test its budget."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import Picture
from tests.support.layer_tokens import grid_layout, layer_tokens
from tops_engine.budget import layer_average
from tops_engine.conversation.messages import user_message
from tops_engine.engine import Engine
from tops_engine.errors import BudgetError, InvalidInput
from tops_engine.methods.dart import DART
from tops_engine.settings import Generation, Pruning


def cosine(left: list[float], right: list[float]) -> float:
    def dot(a: list[float], b: list[float]) -> float:
        return sum(x * y for x, y in zip(a, b, strict=True))

    return dot(left, right) / math.sqrt(dot(left, left) * dot(right, right))


def plain_dart(
    states: list[list[float]], keys: list[list[float]], num_image: int, count: int, image_pivots: int, text_pivots: int
) -> list[int]:
    """Select pivots by the L1 norm of their keys; each in turn takes the least similar of the remaining tokens."""
    norms = [sum(map(abs, key)) for key in keys]
    image = sorted(range(num_image), key=lambda token: (-norms[token], token))[: min(image_pivots, count)]
    text = sorted(range(num_image, len(states)), key=lambda token: (-norms[token], token))[:text_pivots]
    chosen, pivots = list(image), image + text
    for number, pivot in enumerate(pivots):
        share = (count - len(image)) // len(pivots) + (number < (count - len(image)) % len(pivots))
        left = [token for token in range(num_image) if token not in chosen]
        left.sort(key=lambda token: (cosine(states[pivot], states[token]), token))
        chosen += left[:share]
    return chosen


@given(
    st.integers(1, 30), st.integers(1, 6), st.floats(0, 1), st.integers(0, 5), st.integers(0, 5), st.integers(0, 10**6)
)
def test_selection_is_the_definition(
    num_image: int, num_text: int, share: float, image_pivots: int, text_pivots: int, seed: int
) -> None:
    if image_pivots + text_pivots == 0:
        image_pivots = 1
    count = max(1, round(share * num_image))
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(num_image + num_text, 5, generator=generator, dtype=torch.float64)
    # Whole numbers: keys of equal norm are common.
    keys = torch.randint(-2, 3, (num_image + num_text, 3), generator=generator).double()
    image = layer_tokens(grid_layout(1, num_image), normed_states=states, previous_keys=keys)

    method = DART(image_pivots=image_pivots, text_pivots=text_pivots)
    (selection,) = method.select_at_layer([image], [count])

    assert selection.order is not None
    expected = plain_dart(states.tolist(), keys.tolist(), num_image, count, image_pivots, text_pivots)
    assert selection.order.tolist() == expected
    assert selection.indices.tolist() == sorted(expected)
    assert len(set(expected)) == count


def test_copies_of_a_pivot_come_last() -> None:
    states = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.5, 0.0]])
    keys = torch.tensor([[9.0], [1.0], [1.0], [1.0], [1.0]])
    image = layer_tokens(grid_layout(2, 2), normed_states=states, previous_keys=keys)
    (selection,) = DART(image_pivots=1, text_pivots=0).select_at_layer([image], [3])
    assert selection.order is not None
    assert selection.order.tolist() == [0, 3, 2]


@pytest.mark.parametrize(("budget", "count"), [(192, 196), (128, 132), (64, 68)])
def test_what_the_source_keeps_is_a_preset(budget: int, count: int) -> None:
    """Expect the official count: 4 image pivots and 8 equal shares of the budget."""
    assert Pruning(method="dart", schedule=f"dart/{budget}").stages(576, 32) == ((2, count),)


def test_its_layer_average_is_the_budget() -> None:
    stages = Pruning(method="dart", keep=128).stages(576, 32)
    assert stages == ((0, 576), (2, 98))
    assert layer_average(stages, 576, 32) == pytest.approx(128, abs=0.5)
    with pytest.raises(BudgetError, match=r"option 'layer' or use at least 0\.0642"):
        Pruning(method="dart", keep=32).stages(576, 32)


def test_no_pivots_are_refused() -> None:
    with pytest.raises(InvalidInput, match="leave nothing to compare with"):
        Pruning(method="dart", image_pivots=0, text_pivots=0)


def test_text_pivots_bring_the_question_in(llava_next_engine: Engine, picture: Picture) -> None:
    image = picture(90, 60)

    def kept(question: str, text_pivots: int) -> list[int]:
        pruning = Pruning(method="dart", keep=0.5, text_pivots=text_pivots)
        answer = llava_next_engine.chat([user_message(question, image)], pruning, Generation(max_tokens=1))
        return answer.token_map.stages[-1][1][0].tolist()

    assert kept("What?", 0) == kept("Where are the two digits?", 0)
    assert kept("What?", 4) != kept("Where are the two digits?", 4)
