"""Compare HoliTom with the method written out: windows by trying all, tokens and the merging between layers."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.layer_tokens import grid_layout, layer_tokens
from tests.support.visual_tokens import cosine, random_video
from tops_engine.methods.holitom import HoliTom
from tops_engine.selection import num_left, static_windows


@settings(max_examples=25)
@given(st.integers(1, 7), st.integers(1, 4), st.integers(0, 10**6))
def test_the_windows_save_as_much_as_any(num_frames: int, size: int, seed: int) -> None:
    similarity = torch.rand(num_frames - 1, size, generator=torch.Generator().manual_seed(seed))
    windows = static_windows(similarity, 0.4)
    assert [window.start for window in windows] == [0, *(window.end for window in windows[:-1])]
    assert windows[-1].end == num_frames
    savings = []
    for cuts in itertools.product([False, True], repeat=num_frames - 1):
        ends = [frame for frame, cut in enumerate(cuts, start=1) if cut] + [num_frames]
        starts = [0, *ends[:-1]]
        saved = 0
        for start, end in zip(starts, ends, strict=True):
            static = int((similarity[start : end - 1] > 0.4).all(dim=0).sum())
            saved += (end - start - 1) * static
        savings.append(saved)
    assert num_left(windows, size) == num_frames * size - max(savings)


def test_static_places_stand_once_in_the_first_frame_and_the_rest_goes_by_attention() -> None:
    video = random_video(4, 10, changing=0.0, width=8)
    features = video.features.view(4, 10, 8)
    noise = torch.randn(4, 6, 8, generator=torch.Generator().manual_seed(3))
    features[:, 4:] = noise
    # Static: 4 places of one window. Others: 6 tokens in each of 4 frames. Half of 28 tokens: 2 and 3 of each frame.
    (selection,) = HoliTom().select_visual([video], [14])
    attention = video.vision_attention().view(4, 10)
    changing = [
        10 * frame + place
        for frame in range(4)
        for place in sorted(range(4, 10), key=lambda place: -float(attention[frame, place]))[:3]
    ]
    static = sorted(set(selection.indices.tolist()) - set(changing))
    assert len(static) == 2
    assert max(static) < 4
    assert selection.features is not None
    for row, token in zip(selection.features, selection.indices.tolist(), strict=True):
        if token in changing:
            torch.testing.assert_close(row, video.features[token])
    means = features[:, :4].mean(dim=0)
    joined = sorted(set(range(4)) - set(static))
    nearest = [min(static, key=lambda peak: float((means[place] - means[peak]).norm())) for place in joined]
    for row, token in zip(selection.features, selection.indices.tolist(), strict=True):
        if token in static:
            others = [means[place] for place, peak in zip(joined, nearest, strict=True) if peak == token]
            expected = 0.6 * means[token] + 0.4 * torch.stack(others).mean(dim=0) if others else means[token]
            torch.testing.assert_close(row, expected)


def test_the_threshold_rises_where_static_places_would_leave_too_few_tokens() -> None:
    video = random_video(4, 10, changing=0.0)
    (selection,) = HoliTom().select_visual([video], [30])
    assert len(selection.indices) == 30
    (few,) = HoliTom().select_visual([video], [10])
    assert few.indices.tolist() == list(range(10)), "all places are static"


@pytest.mark.parametrize("count", [1, 3, 7])
def test_dropped_tokens_are_averaged_into_the_most_similar_kept_one_by_one(count: int) -> None:
    generator = torch.Generator().manual_seed(count)
    hidden, row = torch.randn(8, 5, generator=generator), torch.rand(1, 8, generator=generator)
    image = layer_tokens(grid_layout(2, 4), hidden_states=hidden, attention={("last", "previous", "mean"): row})
    (selection,) = HoliTom().select_at_layer([image], [count])
    kept = sorted(row[0].topk(count).indices.tolist())
    values = {token: hidden[token].clone() for token in kept}
    for token in sorted(set(range(8)) - set(kept)):
        nearest = max(kept, key=lambda other: cosine(hidden[token], hidden[other]))
        values[nearest] = (values[nearest] + hidden[token]) / 2
    assert selection.indices.tolist() == kept
    assert selection.features is not None
    torch.testing.assert_close(selection.features, torch.stack([values[token] for token in kept]))
