"""Compare FastVID with the method written out for one segment, and test its segments and budgets."""

import pytest
import torch

from tests.support.visual_tokens import cosine, frames_of, random_video
from tops_engine.methods import VisualTokens
from tops_engine.methods.fastvid import FastVID
from tops_engine.selection import density_peaks, unlike_segments

ONE_SEGMENT = {"segments": 1, "segment_threshold": -1.0}


def plain_segment(video: VisualTokens, salient_counts: list[int], context_counts: list[int]) -> dict[int, torch.Tensor]:
    """Return the kept tokens of a video of one segment with their features."""
    attention, features = video.vision_attention(), video.features.double()
    salient: list[int] = []
    context: list[list[int]] = []
    for frame, num_salient, num_context in zip(frames_of(video), salient_counts, context_counts, strict=True):
        ranked = sorted(frame, key=lambda token: -float(attention[token]))
        salient += ranked[:num_salient]
        if num_context:
            rest = sorted(ranked[num_salient:])
            peaks, _ = density_peaks(video.features[rest], num_context, 4)
            context.append([rest[peak] for peak in peaks.tolist()])
    kept = {token: features[token] for token in salient}
    for anchors in context:
        joining = [t for t in range(len(features)) if t not in salient and t not in anchors]
        members: dict[int, list[int]] = {anchor: [] for anchor in anchors}
        for token in joining:
            nearest = max(anchors, key=lambda anchor: cosine(features[token], features[anchor]))
            members[nearest].append(token)
        for anchor, joined in members.items():
            own = max(1 / (len(joined) + 1), 0.6) if joined else 1.0
            mean = features[joined].mean(dim=0) if joined else features[anchor]
            kept[anchor] = own * features[anchor] + (1 - own) * mean
    return kept


@pytest.mark.parametrize(
    ("num_frames", "num_keep", "salient", "context"),
    [
        (1, 5, [3], [2]),
        (4, 10, [2, 2, 1, 1], [0, 0, 0, 4]),
        # Of 8 merged tokens in two frames, the last frame and the fourth before it get four each.
        (6, 20, [2, 2, 2, 2, 2, 2], [0, 4, 0, 0, 0, 4]),
    ],
)
def test_attended_tokens_stay_and_others_join_those_of_every_fourth_frame(
    num_frames: int, num_keep: int, salient: list[int], context: list[int]
) -> None:
    video = random_video(num_frames, 9, seed=num_keep)
    (selection,) = FastVID(**ONE_SEGMENT).select_visual([video], [num_keep])
    expected = plain_segment(video, salient, context)
    assert selection.indices.tolist() == sorted(expected)
    assert selection.features is not None
    rows = torch.stack([expected[token] for token in sorted(expected)]).float()
    torch.testing.assert_close(selection.features, rows, atol=1e-5, rtol=1e-5)


def test_what_a_frame_cannot_hold_goes_to_attended_tokens() -> None:
    (selection,) = FastVID(**ONE_SEGMENT).select_visual([random_video(4, 5)], [19])
    assert (selection.indices // 5).bincount().tolist() == [5, 5, 4, 5]


def test_segments_share_the_budget_by_their_frames() -> None:
    video = random_video(6, 10, changing=0.0)
    features = video.features.clone()
    features[20:] += 3 * torch.randn(5, generator=torch.Generator().manual_seed(1))
    video = VisualTokens(features, video.layout, video.encoder_features, video.vision_attention)
    assert unlike_segments(features.view(6, 10, 5).mean(dim=1), 0.9, 1) == [2, 4]
    (selection,) = FastVID(segments=1).select_visual([video], [30])
    assert int((selection.indices < 20).sum()) == 10


def test_a_video_is_cut_where_it_changes_most_if_there_are_too_few_segments() -> None:
    angles = torch.tensor([0.0, 0.1, 0.5, 0.6, 2.0, 2.1])
    frames = torch.stack([angles.cos(), angles.sin()], dim=1)
    assert unlike_segments(frames, 0.95, 1) == [2, 2, 2]
    assert unlike_segments(frames, 0.5, 1) == [4, 2]
    assert unlike_segments(frames, 0.5, 3) == [2, 2, 2]
    assert unlike_segments(frames, 0.5, 9) == [1] * 6
    assert unlike_segments(frames[:1], 0.9, 8) == [1]
