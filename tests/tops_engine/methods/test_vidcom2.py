"""Compare VidCom2 with the method written out token by token."""

import math

import pytest
import torch

from tests.support.visual_tokens import frames_of, random_video
from tops_engine.methods import VisualTokens
from tops_engine.methods.vidcom2 import VidCom2

Vector = list[float]


def mean(vectors: list[Vector]) -> Vector:
    return [sum(column) / len(vectors) for column in zip(*vectors, strict=True)]


def similarity(a: Vector, b: Vector) -> float:
    distance = math.dist(a, b) ** 2
    return sum(math.exp(-distance / (2 * variance)) for variance in (0.125, 0.25, 0.5, 1, 2))


def kept_tokens(video: VisualTokens, num_keep: int) -> set[int]:
    """Return the kept tokens by the method's rules: shares of frames, then the exact number by score."""
    values = video.features.double().tolist()
    columns = list(zip(*values, strict=True))
    spread = [sum((x - sum(c) / len(c)) ** 2 for x in c) for c in columns]
    channels = sorted(range(len(columns)), key=lambda channel: spread[channel])[: len(columns) // 2]
    unit = [[row[c] / math.hypot(*(row[c] for c in channels)) for c in channels] for row in values]
    frames = frames_of(video)
    whole = mean([unit[token] for frame in frames for token in frame])
    to_video = {token: similarity(unit[token], whole) for frame in frames for token in frame}
    scores: dict[int, float] = {}
    likeness = []
    for frame in frames:
        centre = mean([unit[token] for token in frame])
        scores |= {token: to_video[token] + similarity(unit[token], centre) for token in frame}
        likeness.append(sum(to_video[token] for token in frame) / len(frame))
    exponents = [math.exp((min(likeness) - value) / 0.01) for value in likeness]
    parts = [value / sum(exponents) for value in exponents]
    kept: set[int] = set()
    size = len(frames[0])
    for frame, part in zip(frames, parts, strict=True):
        share = min(1.0, num_keep / len(scores) * (1 + part - sum(parts) / len(parts)))
        count = max(1, round(share * size))
        kept |= set(sorted(frame, key=lambda token: scores[token])[:count])
    order = sorted(scores, key=lambda token: (token not in kept, scores[token]))
    return set(order[:num_keep])


@pytest.mark.parametrize("num_keep", [3, 17, 30, 47])
def test_frames_unlike_the_video_keep_more_of_their_unlike_tokens(num_keep: int) -> None:
    video = random_video(6, 8, seed=num_keep)
    (selection,) = VidCom2().select_visual([video], [num_keep])
    assert set(selection.indices.tolist()) == kept_tokens(video, num_keep)


def test_a_frame_of_another_scene_gets_the_most_tokens() -> None:
    video = random_video(5, 10, changing=0.2, width=16)
    features = video.features.clone()
    features[20:30] = torch.randn(10, 16, generator=torch.Generator().manual_seed(9))
    video = VisualTokens(features, video.layout, video.encoder_features, video.vision_attention)
    (selection,) = VidCom2().select_visual([video], [20])
    counts = (selection.indices // 10).bincount(minlength=5).tolist()
    assert counts[2] == max(counts) > min(counts)


def test_equal_frames_keep_the_same_tokens() -> None:
    one = random_video(1, 10)
    features = one.features.repeat(4, 1)
    layout = random_video(4, 10).layout
    video = VisualTokens(features, layout, one.encoder_features, one.vision_attention)
    (selection,) = VidCom2().select_visual([video], [12])
    assert len({tuple(row) for row in (selection.indices % 10).view(4, 3).tolist()}) == 1
