"""Test budgets: whole tokens whose layer-average meets the requested one."""

import re

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tops_engine.budget import Keep, Stage, layer_average, stages_for, target_tokens, tokens_per_layer
from tops_engine.errors import BudgetError

SIZES = st.integers(1, 3000)
DEPTHS = st.integers(1, 100)
#: Of three stages: (fraction of the layers, relative size).
SHAPE = ((0.0, 2.0), (3 / 8, 0.5), (3 / 4, 0.25))
KEEPS = st.floats(0.0005, 1.0) | st.integers(1, 4000)


def target(keep: Keep, num_visual_tokens: int) -> float:
    return min(keep * num_visual_tokens if isinstance(keep, float) else keep, num_visual_tokens)


def span_lengths(stages: tuple[Stage, ...], num_layers: int) -> list[int]:
    ends = [*(stage.layer for stage in stages[1:]), num_layers]
    return [end - stage.layer for stage, end in zip(stages, ends, strict=True)]


@given(KEEPS, SIZES, DEPTHS)
def test_the_average_is_as_near_to_the_target_as_one_rounded_stage_allows(keep: Keep, size: int, depth: int) -> None:
    assume(target(keep, size) >= 1)

    stages = stages_for(keep, size, depth, SHAPE)

    # One token more in a stage of l of the L layers moves the average by l / L. Rounding the stages up one after the
    # other passes the target in steps no larger than that, so the nearer end of a step is half of it away at most.
    lengths = span_lengths(stages, depth)
    average = sum(stage.num_tokens * length for stage, length in zip(stages, lengths, strict=True)) / depth
    assert abs(average - target(keep, size)) <= max(lengths) / (2 * depth) + 1e-6
    assert layer_average(stages, size, depth) == pytest.approx(average, abs=1e-9)


@given(KEEPS, SIZES, DEPTHS)
def test_counts_never_grow_and_stay_between_one_token_and_all(keep: Keep, size: int, depth: int) -> None:
    assume(target(keep, size) >= 1)

    stages = stages_for(keep, size, depth, SHAPE)

    layers, counts = [stage.layer for stage in stages], [stage.num_tokens for stage in stages]
    assert layers[0] == 0
    assert layers == sorted(set(layers))
    assert layers[-1] < depth
    assert counts == sorted(counts, reverse=True)
    assert counts[-1] >= 1
    assert counts[0] <= size


def test_128_of_576_tokens_over_32_layers_are_256_then_64_then_32() -> None:
    stages = stages_for(128, 576, 32, SHAPE)

    assert stages == (Stage(0, 256), Stage(12, 64), Stage(24, 32))
    assert layer_average(stages, 576, 32) == 128
    assert tokens_per_layer(stages, 576, 32) == [256] * 12 + [64] * 12 + [32] * 8


def test_a_first_stage_that_would_need_more_tokens_than_there_are_keeps_all_and_the_others_make_up_for_it() -> None:
    # T = 400 asks 800 of 576 first. The later stages get (400 * 32 - 576 * 12) / (12 + 8 / 2) = 368 and 184.
    assert stages_for(400, 576, 32, SHAPE) == (Stage(0, 576), Stage(12, 368), Stage(24, 184))


@given(SIZES, DEPTHS)
def test_keeping_everything_drops_nothing_in_any_layer(size: int, depth: int) -> None:
    assert tokens_per_layer(stages_for(1.0, size, depth, SHAPE), size, depth) == [size] * depth
    assert tokens_per_layer(stages_for(size + 1, size, depth, SHAPE), size, depth) == [size] * depth


@given(KEEPS, SIZES, DEPTHS)
def test_a_shape_of_one_stage_keeps_the_rounded_target_in_all_layers(keep: Keep, size: int, depth: int) -> None:
    assume(target(keep, size) >= 1)
    ((layer, count),) = stages_for(keep, size, depth, shape=((0.0, 1.0),))

    assert layer == 0
    assert abs(count - target(keep, size)) <= 0.5 + 1e-6


def test_a_budget_too_large_for_a_float_keeps_everything() -> None:
    assert target_tokens(10**400, 576) == 576


@given(st.integers(1, 20000))
def test_less_than_one_token_is_refused_with_the_smallest_fraction_that_works(size: int) -> None:
    with pytest.raises(BudgetError, match=f"less than one of {size} visual tokens") as refusal:
        stages_for(0.9999 / size, size, 32, SHAPE)

    (advice,) = re.findall(r"use at least ([\d.]+)\.$", str(refusal.value))
    assert "." in advice, "a whole number would be read as a number of tokens"
    assert target_tokens(float(advice), size) >= 1
    # Smallest to the four decimals it is given in.
    assert (float(advice) - 1e-4) * size < 1


def test_a_stage_never_brings_dropped_tokens_back() -> None:
    assert tokens_per_layer((Stage(0, 5), Stage(2, 9), Stage(3, 2)), 7, 4) == [5, 5, 5, 2]


def test_an_image_is_whole_until_its_first_stage() -> None:
    assert tokens_per_layer((Stage(2, 3),), 7, 4) == [7, 7, 3, 3]
