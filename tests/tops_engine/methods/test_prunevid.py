"""Compare PruneVid with the method written out: segments, groups, clusters, and the choice between layers."""

import pytest
import torch

from tests.support.layer_tokens import layer_tokens
from tests.support.visual_tokens import random_video
from tops_engine.media.layout import frame_layout, grid_boxes
from tops_engine.methods.prunevid import PruneVid
from tops_engine.selection import apportion, clustered_segments, density_peaks
from tops_engine.selection.frames import segments_of


@pytest.mark.parametrize(
    ("labels", "lengths"),
    [
        ((0, 0, 0, 1, 1, 1), [3, 3]),
        ((0, 0, 0, 0), [4]),
        # A single frame of a scene joins the longer neighbour, of equal ones the earlier.
        ((0, 0, 0, 1, 2, 2), [4, 2]),
        ((0, 0, 1, 2, 2, 2), [2, 4]),
        ((0, 0, 1, 2, 2), [3, 2]),
        # Of the runs of a scene the longest stay.
        ((0, 0, 0, 1, 1, 0, 0), [3, 4]),
        ((0, 0, 1, 1, 0, 0), [2, 2, 2]),
        # Single frames at the ends, and nothing but single frames.
        ((1, 0, 0, 0, 2), [5]),
        ((0, 1, 0, 1), [4]),
        ((0,), [1]),
    ],
)
def test_segments_are_runs_of_a_cluster(labels: tuple[int, ...], lengths: list[int]) -> None:
    assert segments_of(labels) == lengths


def test_frames_of_two_scenes_are_two_segments() -> None:
    scene = torch.randn(2, 6, generator=torch.Generator().manual_seed(0))
    frames = scene[[0, 0, 0, 0, 1, 1, 1, 1]] + 0.01 * torch.randn(8, 6, generator=torch.Generator().manual_seed(1))
    assert clustered_segments(frames, 2, 3) == [4, 4]


def test_static_places_of_a_segment_and_the_others_of_each_frame_are_clustered() -> None:
    video = random_video(4, 10, changing=0.0, width=8)
    features = video.features.view(4, 10, 8)
    features[:, 6:] = torch.randn(4, 4, 8, generator=torch.Generator().manual_seed(1))
    (selection,) = PruneVid(segment_ratio=0.25).select_visual([video], [11])
    # One segment: 6 static places and 4 others in each of 4 frames; 11 of 22 tokens are half of each group.
    expected = {}
    groups = [(list(range(6)), features[:, :6].mean(dim=0))]
    groups += [(list(range(10 * frame + 6, 10 * frame + 10)), features[frame, 6:]) for frame in range(4)]
    for (tokens, values), count in zip(groups, apportion(11, [6, 4, 4, 4, 4]), strict=True):
        peaks, belongs = density_peaks(values, count, 7)
        for number, peak in enumerate(peaks.tolist()):
            expected[tokens[peak]] = values[belongs == number].mean(dim=0)
    assert selection.indices.tolist() == sorted(expected)
    assert selection.features is not None
    torch.testing.assert_close(selection.features, torch.stack([expected[token] for token in sorted(expected)]))


def test_a_place_is_static_by_the_mean_similarity_of_all_pairs_of_frames() -> None:
    # Two places in three frames: one does not change, the other turns by 60 degrees; pairs of 0.5, 0.5 and -0.5.
    angles = torch.tensor([0.0, 60.0, 120.0]).deg2rad()
    features = torch.zeros(3, 2, 2)
    features[:, 0, 0] = 1
    features[:, 1] = torch.stack([angles.cos(), angles.sin()], dim=1)
    video = random_video(3, 2, width=2)
    video.features[:] = features.flatten(0, 1)
    (static,) = PruneVid(static_threshold=0.16).select_visual([video], [2])
    assert static.indices.tolist() == [0, 1], "the mean of the pairs is 1/6, so both places are static"
    (changing,) = PruneVid(static_threshold=0.17).select_visual([video], [4])
    assert changing.indices.tolist() == [0, 1, 3, 5]


def test_each_frame_keeps_the_same_share_of_what_the_question_attends_to() -> None:
    layout = frame_layout(3, grid_boxes(1, 4), (1, 4))
    rows = torch.tensor([[0.9, 0.1, 0.2, 0.3] * 3, [0.0, 0.8, 0.1, 0.1] * 3])
    image = layer_tokens(layout, attention={("text", "previous", "max"): rows})
    (selection,) = PruneVid().select_at_layer([image], [6])
    assert selection.indices.tolist() == [0, 1, 4, 5, 8, 9]
