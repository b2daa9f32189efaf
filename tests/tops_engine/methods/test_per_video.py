"""Test all methods for videos: exact budgets, extremes, and what holds for any video."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.layer_tokens import layer_tokens
from tests.support.visual_tokens import frames_of, random_video
from tops_engine.budget import layer_average
from tops_engine.errors import BudgetError, UnsupportedModel
from tops_engine.media.layout import VisualLayout, frame_layout, grid_boxes
from tops_engine.methods import METHODS, Selection, VisualTokens
from tops_engine.methods.two_stage import TwoStage

NAMES = sorted(name for name, method in METHODS.items() if method.for_videos)
TWO_STAGES = [name for name in NAMES if issubclass(METHODS[name], TwoStage)]


def select(name: str, video: VisualTokens, count: int) -> Selection:
    (selection,) = METHODS[name]().select_visual([video], [count])
    return selection


def check(selection: Selection, video: VisualTokens, count: int) -> None:
    indices = selection.indices.tolist()
    assert indices == sorted(set(indices))
    assert len(indices) == count
    assert 0 <= indices[0] <= indices[-1] < video.layout.num_tokens
    if selection.features is not None:
        assert selection.features.shape == (count, video.features.shape[1])
        assert selection.features.isfinite().all()


def test_the_methods_are_those_that_are_published() -> None:
    assert NAMES == ["dycoke", "evs", "fastvid", "flashvid", "holitom", "prunevid", "vidcom2"]


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=25)
@given(st.integers(1, 13), st.integers(1, 12), st.integers(0, 2), st.sampled_from([0.0, 0.3, 1.0]), st.data())
def test_every_budget_of_every_video_is_met(
    name: str, num_frames: int, size: int, newlines: int, changing: float, data: st.DataObject
) -> None:
    video = random_video(num_frames, size, newlines, seed=num_frames + 20 * size, changing=changing)
    count = data.draw(st.integers(1, video.layout.num_tokens))
    selection = select(name, video, count)
    check(selection, video, count)
    # Newline tokens stay only where the budget exceeds the tokens of the frames.
    patches = video.layout.shows_picture[selection.indices]
    assert int(patches.sum()) == min(count, num_frames * size)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=25)
@given(st.integers(1, 10), st.integers(1, 9), st.booleans(), st.data())
def test_equal_frames_and_equal_tokens_are_no_exception(
    name: str, num_frames: int, size: int, tokens_too: bool, data: st.DataObject
) -> None:
    frame = torch.randn(size, 4, generator=torch.Generator().manual_seed(size))
    features = (frame[:1] if tokens_too else frame).expand(size, -1).repeat(num_frames, 1)
    layout = frame_layout(num_frames, grid_boxes(1, size), (1, size))
    video = VisualTokens(features, layout, lambda: features, lambda: torch.ones(num_frames * size))
    count = data.draw(st.integers(1, len(features)))
    selection = select(name, video, count)
    check(selection, video, count)
    if selection.features is not None and tokens_too:
        torch.testing.assert_close(selection.features, features[:count])


@pytest.mark.parametrize("name", NAMES)
def test_keeping_all_tokens_changes_none(name: str) -> None:
    video = random_video(5, 6, newlines=1)
    selection = select(name, video, 35)
    assert selection.indices.tolist() == list(range(35))
    assert selection.features is None


@pytest.mark.parametrize("name", NAMES)
def test_a_picture_is_a_video_of_one_frame(name: str) -> None:
    video = random_video(1, 16)
    picture = VisualTokens(
        video.features,
        VisualLayout(grid_boxes(4, 4), torch.zeros(16).long(), ((4, 4),)),
        video.encoder_features,
        video.vision_attention,
    )
    for count in (1, 5, 15):
        alone, of_video = select(name, picture, count), select(name, video, count)
        assert alone.indices.tolist() == of_video.indices.tolist()


@pytest.mark.parametrize("name", NAMES)
def test_half_precision_gives_the_tokens_of_float32(name: str) -> None:
    video = random_video(6, 12)
    halves = VisualTokens(
        video.features.bfloat16(), video.layout, lambda: video.features.bfloat16(), video.vision_attention
    )
    rounded = VisualTokens(
        video.features.bfloat16().float(), video.layout, video.encoder_features, video.vision_attention
    )
    chosen, expected = select(name, halves, 20), select(name, rounded, 20)
    assert chosen.indices.tolist() == expected.indices.tolist()
    if chosen.features is not None:
        assert chosen.features.dtype == torch.bfloat16


def test_frames_have_the_same_number_of_tokens() -> None:
    layout = VisualLayout(grid_boxes(1, 5), torch.zeros(5).long(), ((1, 3),), torch.tensor([0, 0, 0, 1, 1]))
    with pytest.raises(UnsupportedModel, match="different numbers of tokens"):
        layout.frame_tokens.tolist()


def test_frames_are_found_wherever_newlines_stand() -> None:
    video = random_video(3, 4, newlines=1)
    assert video.layout.frame_tokens.tolist() == frames_of(video)
    # A token that shows two frames has the number of the first.
    assert frame_layout(2, grid_boxes(1, 2), (1, 2), frame_step=2).frame_tokens.tolist() == [[0, 1], [2, 3]]


@pytest.mark.parametrize("name", TWO_STAGES)
@pytest.mark.parametrize("stages", ["both", "first", "second"])
@settings(max_examples=25)
@given(st.integers(1, 400), st.integers(2, 40), st.floats(0.01, 1.0))
def test_both_stages_together_meet_the_layer_average(
    name: str, stages: str, num_tokens: int, num_layers: int, keep: float
) -> None:
    method = METHODS[name](**{"stages": stages})
    try:
        plan = method.plan(num_tokens, num_layers, keep)
    except BudgetError:
        assert stages == "second" or keep * num_tokens < 1
        return
    assert layer_average(plan, num_tokens, num_layers) == pytest.approx(keep * num_tokens, abs=0.5)


@pytest.mark.parametrize("name", TWO_STAGES)
@settings(max_examples=25)
@given(st.integers(1, 5), st.integers(1, 6), st.data())
def test_the_second_stage_keeps_exactly_its_number(name: str, num_frames: int, size: int, data: st.DataObject) -> None:
    layout = frame_layout(num_frames, grid_boxes(1, size), (1, size))
    kept = torch.tensor(sorted(data.draw(st.sets(st.integers(0, num_frames * size - 1), min_size=1))))
    count = data.draw(st.integers(1, len(kept)))
    generator = torch.Generator().manual_seed(count)
    hidden = torch.randn(len(kept), 4, generator=generator)
    rows = torch.rand(2, len(kept), generator=generator)
    attention = {("last", "previous", "mean"): rows[-1:], ("text", "previous", "max"): rows}
    image = layer_tokens(layout, kept, hidden, attention)
    (selection,) = METHODS[name]().select_at_layer([image], [count])
    indices = selection.indices.tolist()
    assert indices == sorted(set(indices))
    assert len(indices) == count
    if selection.features is not None:
        assert selection.features.shape == (count, 4)
        if count == len(kept):
            torch.testing.assert_close(selection.features, hidden)
