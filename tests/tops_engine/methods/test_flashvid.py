"""Compare FlashVID with the method written out: the choice in a frame, trees over time, clusters."""

import math

import pytest
import torch
from torch import Tensor

from tests.support.visual_tokens import cosine, random_video
from tops_engine.methods.flashvid import FlashVID, merge_over_time
from tops_engine.selection import max_min_select


def plain_choice(features: Tensor, attention: Tensor, count: int) -> list[int]:
    """Return the tokens farthest from those chosen before, by cosine distance times attention."""

    def distance(token: int, others: list[int]) -> float:
        return min(float(attention[token]) * (1 - cosine(features[token], features[other])) for other in others)

    size = range(len(features))
    chosen = [max(size, key=lambda token: distance(token, [other for other in size if other != token]))]
    while len(chosen) < count:
        chosen.append(max((t for t in size if t not in chosen), key=lambda token: distance(token, chosen)))
    return chosen


@pytest.mark.parametrize("count", [1, 4, 11])
def test_the_choice_in_a_frame_weights_distances_by_attention(count: int) -> None:
    generator = torch.Generator().manual_seed(count)
    features, attention = torch.randn(12, 5, generator=generator), torch.rand(12, generator=generator)
    assert max_min_select(features, count, attention).tolist() == plain_choice(features, attention, count)


def plain_trees(features: Tensor, joining: Tensor, threshold: float) -> dict[int, Tensor]:
    """Return the roots of trees in the flattened frames, with the means of all tokens of the tree."""
    num_frames, size = joining.shape
    parent: dict[int, int] = {}
    for frame in range(1, num_frames):
        for place in range(size):
            others = [other for other in range(size) if joining[frame - 1, other]]
            if joining[frame, place] and others:
                nearest = max(others, key=lambda o: cosine(features[frame, place], features[frame - 1, o]))
                if cosine(features[frame, place], features[frame - 1, nearest]) > threshold:
                    parent[frame * size + place] = (frame - 1) * size + nearest
    members: dict[int, list[int]] = {}
    for token in joining.flatten().nonzero().flatten().tolist():
        root = token
        while root in parent:
            root = parent[root]
        members.setdefault(root, []).append(token)
    flat = features.flatten(0, 1)
    return {root: flat[tokens].mean(dim=0) for root, tokens in members.items()}


@pytest.mark.parametrize("seed", range(3))
def test_tokens_that_follow_each_other_in_time_become_their_mean(seed: int) -> None:
    video = random_video(4, 8, seed=seed)
    features = video.features.view(4, 8, 5)
    joining = torch.rand(4, 8, generator=torch.Generator().manual_seed(seed)) < 0.8
    roots, means = merge_over_time(features, joining, 0.8, least=1)
    expected = plain_trees(features, joining, 0.8)
    assert roots.tolist() == sorted(expected)
    assert len(roots) < int(joining.sum()), "something is merged"
    torch.testing.assert_close(means, torch.stack([expected[root] for root in sorted(expected)]))


def test_no_more_is_merged_than_the_budget_allows() -> None:
    video = random_video(4, 8, changing=0.0)
    features, joining = video.features.view(4, 8, 5), torch.ones(4, 8, dtype=torch.bool)
    for least in (9, 20, 31, 32):
        roots, _ = merge_over_time(features, joining, 0.8, least)
        assert least <= len(roots) <= least + 1


def test_chosen_tokens_stay_as_they_are_and_the_rest_of_the_budget_is_merged() -> None:
    video = random_video(3, 10)
    (selection,) = FlashVID(segments=1, segment_threshold=-1).select_visual([video], [15])
    attention = video.vision_attention().view(3, 10)
    features = video.features.view(3, 10, 5)
    chosen = [
        10 * frame + token
        for frame in range(3)
        for token in plain_choice(features[frame], attention[frame], math.ceil(0.7 * 5))
    ]
    assert set(chosen) < set(selection.indices.tolist())
    assert selection.features is not None
    for token, row in zip(selection.indices.tolist(), selection.features, strict=True):
        if token in chosen:
            torch.testing.assert_close(row, video.features[token])


def test_without_merging_over_time_a_frame_keeps_its_own_clusters() -> None:
    video = random_video(4, 10, changing=1.0, seed=2, width=32)
    (selection,) = FlashVID(merge_threshold=1).select_visual([video], [20])
    assert (selection.indices // 10).bincount().tolist() == [5, 5, 5, 5]
