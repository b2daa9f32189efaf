"""Budgets: whole tokens whose layer-average meets what was asked."""

import re

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tops_engine.budget import PRESETS, Keep, Stage, layer_average, stages_for, target_tokens, tokens_per_layer
from tops_engine.errors import BudgetError

SIZES = st.integers(1, 3000)
DEPTHS = st.integers(1, 100)
KEEPS = st.floats(0.0005, 1.0) | st.integers(1, 4000)

# The reference's tables 9 and 10: model/budget -> tokens before the LLM, and at which layer how many remain.
PAPER_TABLES = {
    "llava-1.5-7b/128": ((0, 256), (12, 128), (24, 32)),
    "llava-1.5-7b/64": ((0, 128), (12, 64), (24, 16)),
    "llava-1.5-7b/32": ((0, 64), (12, 32), (24, 8)),
    "llava-1.5-13b/128": ((0, 256), (15, 128), (30, 32)),
    "llava-1.5-13b/64": ((0, 128), (15, 64), (30, 16)),
    "llava-1.5-13b/32": ((0, 64), (15, 32), (30, 8)),
    "llava-next-7b/640": ((0, 1280), (12, 640), (24, 160)),
    "llava-next-7b/320": ((0, 640), (12, 320), (24, 80)),
    "llava-next-7b/160": ((0, 320), (12, 160), (24, 40)),
    "llava-next-13b/640": ((0, 1280), (15, 640), (30, 160)),
    "llava-next-13b/320": ((0, 640), (15, 320), (30, 80)),
    "llava-next-13b/160": ((0, 320), (15, 160), (30, 40)),
    "qwen2.5-vl-7b/256": ((0, 512), (12, 281), (16, 77)),
    "qwen2.5-vl-7b/128": ((0, 256), (12, 139), (16, 39)),
    "qwen2.5-vl-7b/64": ((0, 128), (12, 71), (16, 19)),
    "internvl3-8b/256": ((0, 512), (12, 281), (16, 77)),
    "internvl3-8b/128": ((0, 256), (12, 139), (16, 39)),
    "internvl3-8b/64": ((0, 128), (12, 71), (16, 19)),
    # Table 17's counts for the first row, which are the only ones that average 128.
    "llava-1.5-7b/128-table17": ((0, 256), (12, 64), (24, 32)),
}


def target(keep: Keep, num_visual_tokens: int) -> float:
    return min(keep * num_visual_tokens if isinstance(keep, float) else keep, num_visual_tokens)


def span_lengths(stages: tuple[Stage, ...], num_layers: int) -> list[int]:
    ends = [*(stage.layer for stage in stages[1:]), num_layers]
    return [end - stage.layer for stage, end in zip(stages, ends, strict=True)]


@given(KEEPS, SIZES, DEPTHS)
def test_the_average_is_as_near_to_the_target_as_one_rounded_stage_allows(keep: Keep, size: int, depth: int) -> None:
    assume(target(keep, size) >= 1)

    stages = stages_for(keep, size, depth)

    # One token more in a stage of l of the L layers moves the average by l / L. Rounding the stages up one after the
    # other passes the target in steps no larger than that, so the nearer end of a step is half of it away at most.
    lengths = span_lengths(stages, depth)
    average = sum(stage.num_tokens * length for stage, length in zip(stages, lengths, strict=True)) / depth
    assert abs(average - target(keep, size)) <= max(lengths) / (2 * depth) + 1e-6
    assert layer_average(stages, size, depth) == pytest.approx(average, abs=1e-9)


@given(KEEPS, SIZES, DEPTHS)
def test_counts_never_grow_and_stay_between_one_token_and_all(keep: Keep, size: int, depth: int) -> None:
    assume(target(keep, size) >= 1)

    stages = stages_for(keep, size, depth)

    layers, counts = [stage.layer for stage in stages], [stage.num_tokens for stage in stages]
    assert layers[0] == 0
    assert layers == sorted(set(layers))
    assert layers[-1] < depth
    assert counts == sorted(counts, reverse=True)
    assert counts[-1] >= 1
    assert counts[0] <= size


@given(KEEPS, SIZES, st.integers(8, 100))
def test_stages_that_hit_no_bound_keep_the_shape_four_to_one_to_a_half(keep: Keep, size: int, depth: int) -> None:
    assume(target(keep, size) >= 1)
    first, second, third = (stage.num_tokens for stage in stages_for(keep, size, depth))
    assume(first < size and third > 1)

    # Each count is less than one token off its exact share.
    assert abs(first - 4 * second) < 1 + 4
    assert abs(second - 2 * third) < 1 + 2


def test_128_of_576_tokens_over_32_layers_are_256_then_64_then_32() -> None:
    stages = stages_for(128, 576, 32)

    assert stages == (Stage(0, 256), Stage(12, 64), Stage(24, 32))
    assert layer_average(stages, 576, 32) == 128
    assert tokens_per_layer(stages, 576, 32) == [256] * 12 + [64] * 12 + [32] * 8


def test_a_first_stage_that_would_need_more_tokens_than_there_are_keeps_all_and_the_others_make_up_for_it() -> None:
    # T = 400 asks 800 of 576 first. The later stages get (400 * 32 - 576 * 12) / (12 + 8 / 2) = 368 and 184.
    assert stages_for(400, 576, 32) == (Stage(0, 576), Stage(12, 368), Stage(24, 184))


@given(SIZES, DEPTHS)
def test_keeping_everything_drops_nothing_in_any_layer(size: int, depth: int) -> None:
    assert tokens_per_layer(stages_for(1.0, size, depth), size, depth) == [size] * depth
    assert tokens_per_layer(stages_for(size + 1, size, depth), size, depth) == [size] * depth


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
        stages_for(0.9999 / size, size, 32)

    (advice,) = re.findall(r"use at least ([\d.]+)\.$", str(refusal.value))
    assert "." in advice, "a whole number would be read as a number of tokens"
    assert target_tokens(float(advice), size) >= 1
    # Smallest to the four decimals it is given in.
    assert (float(advice) - 1e-4) * size < 1


def test_presets_are_the_papers_tables() -> None:
    assert {name: preset.stages for name, preset in PRESETS.items()} == PAPER_TABLES


@pytest.mark.parametrize(
    ("name", "average"),
    [
        ("llava-1.5-7b/128", (12 * 256 + 12 * 128 + 8 * 32) / 32),  # 152
        ("llava-1.5-7b/128-table17", 128),
        ("llava-1.5-13b/128", (15 * 256 + 15 * 128 + 10 * 32) / 40),  # 152
        ("qwen2.5-vl-7b/256", (12 * 512 + 4 * 281 + 12 * 77) / 28),  # 292.6
        ("internvl3-8b/128", (12 * 256 + 4 * 139 + 12 * 39) / 28),
    ],
)
def test_presets_report_their_true_average_not_the_one_the_paper_claims(name: str, average: float) -> None:
    assert PRESETS[name].layer_average == average


def test_presets_have_the_papers_weights() -> None:
    weights = {name: (preset.options["alpha"], preset.options["lambda"]) for name, preset in PRESETS.items()}

    assert weights["llava-1.5-7b/128"] == weights["llava-1.5-7b/128-table17"] == (0.5, 0.5)
    assert weights["llava-1.5-7b/64"] == weights["llava-1.5-7b/32"] == (0.5, 1.0)
    assert {weights[f"llava-1.5-13b/{budget}"] for budget in (128, 64, 32)} == {(0.5, 0.4)}
    assert [weights[f"llava-next-7b/{budget}"] for budget in (640, 320, 160)] == [(0.5, 0.5), (0.5, 0.4), (0.5, 0.5)]
    assert {weights[f"llava-next-13b/{budget}"] for budget in (640, 320, 160)} == {(0.5, 0.5)}
    assert {weights[f"qwen2.5-vl-7b/{budget}"] for budget in (256, 128)} == {(0.5, 0.4)}
    assert [weights[f"internvl3-8b/{budget}"] for budget in (256, 128)] == [(0.2, 0.2), (0.3, 0.2)]


def test_a_stage_never_brings_dropped_tokens_back() -> None:
    assert tokens_per_layer((Stage(0, 5), Stage(2, 9), Stage(3, 2)), 7, 4) == [5, 5, 5, 2]


def test_an_image_is_whole_until_its_first_stage() -> None:
    assert tokens_per_layer((Stage(2, 3),), 7, 4) == [7, 7, 3, 3]


@pytest.mark.parametrize(("depth", "layers"), [(32, [0, 12, 24]), (40, [0, 15, 30]), (29, [0, 11, 22]), (8, [0, 3, 6])])
def test_stages_start_at_the_layers_nearest_to_three_eighths_and_three_quarters(depth: int, layers: list[int]) -> None:
    assert [stage.layer for stage in stages_for(64, 576, depth)] == layers
