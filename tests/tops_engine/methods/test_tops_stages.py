"""Test TOPS with only one of its stages: the budget, and where tokens are selected."""

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from tests.conftest import Picture
from tops_engine.budget import Keep, Stage, layer_average
from tops_engine.conversation.messages import read_conversation, user_message
from tops_engine.engine import Engine
from tops_engine.errors import BudgetError, InvalidInput
from tops_engine.methods.tops import TOPS
from tops_engine.settings import Generation, Pruning


def test_one_stage_alone_meets_the_budget() -> None:
    assert Pruning(keep=128, stages="first").stages(576, 32) == (Stage(0, 128),)
    second = Pruning(keep=128, stages="second").stages(576, 32)
    # (2 * 576 + 10 * 148 + 20 * 73) / 32 = 127.9: nearest to 128 of all whole counts near 147.2 and 73.6.
    assert second == (Stage(0, 576), Stage(2, 148), Stage(12, 73))
    assert layer_average(second, 576, 32) == pytest.approx(128, abs=0.5)
    with pytest.raises(BudgetError, match=r"layer 2 of 32, .* with the option 'schedule' or use at least 0\.0642"):
        Pruning(keep=32, stages="second").stages(576, 32)


def test_the_first_stage_alone_chooses_before_the_language_model(llava_engine: Engine, picture: Picture) -> None:
    messages = [user_message("What?", picture(90, 60), picture(60, 60, 1))]
    answer = llava_engine.chat(messages, Pruning(keep=0.375, stages="first"), Generation(max_tokens=1))
    assert [(stage.layer, stage.visual_tokens) for stage in answer.usage.stages] == [(0, [6, 6])]
    family = llava_engine.family
    with torch.inference_mode():
        (images,) = family.encode([family.prepare(read_conversation(messages))])
        expected = TOPS().select_visual(images, [6, 6])
    for kept, selection in zip(answer.token_map.stages[0][1], expected, strict=True):
        assert kept.tolist() == selection.indices.tolist()


def test_the_second_stage_alone_leaves_the_first_layers_whole(llava_engine: Engine, picture: Picture) -> None:
    messages = [user_message("What?", picture(90, 60))]
    answer = llava_engine.chat(messages, Pruning(keep=0.5, stages="second"), Generation(max_tokens=1))
    # Of 8 layers: (16 + 2 a + 5 b) / 8 = 8 with a = 2 b.
    stages = [(stage.layer, stage.visual_tokens) for stage in answer.usage.stages]
    assert stages[0] == (0, [16])
    assert [layer for layer, _ in stages] == [0, 1, 3]
    assert answer.usage.layer_average == pytest.approx(8, abs=0.5)


def test_a_schedule_must_fit_the_stage() -> None:
    assert Pruning(schedule="1:50,4:20", stages="second").stages(576, 8) == (Stage(1, 50), Stage(4, 20))
    with pytest.raises(InvalidInput, match="prunes before the language model, where method 'tops' does not"):
        Pruning(schedule="llava-1.5-7b/64", stages="second")
    with pytest.raises(InvalidInput, match="prunes at layer 4, where method 'tops' does not"):
        Pruning(schedule="0:50,4:20", stages="first")


@pytest.mark.parametrize(("depth", "layers"), [(32, [0, 12, 24]), (40, [0, 15, 30]), (29, [0, 11, 22]), (8, [0, 3, 6])])
def test_stages_start_at_the_layers_nearest_to_three_eighths_and_three_quarters(depth: int, layers: list[int]) -> None:
    assert [stage.layer for stage in TOPS().plan(576, depth, 64)] == layers


@given(st.floats(0.0005, 1.0) | st.integers(1, 4000), st.integers(1, 3000), st.integers(8, 100))
def test_stages_that_hit_no_bound_keep_the_shape_four_to_one_to_a_half(keep: Keep, size: int, depth: int) -> None:
    assume(min(keep * size if isinstance(keep, float) else keep, size) >= 1)
    first, second, third = (stage.num_tokens for stage in TOPS().plan(size, depth, keep))
    assume(first < size and third > 1)

    # Each count is less than one token off its exact share.
    assert abs(first - 4 * second) < 1 + 4
    assert abs(second - 2 * third) < 1 + 2
