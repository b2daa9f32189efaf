"""What the comparisons with official code of methods for videos share."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import torch
from torch import Tensor

from benchmarks.official.comparison import SEEDS
from tops_engine.media.layout import frame_layout, grid_boxes
from tops_engine.methods import Method, VisualTokens

WIDTH = 32


class RandomVideo(NamedTuple):
    """A video: ``features`` float32 [num_frames, n, d] and ``attention`` float32 [num_frames, n]."""

    features: Tensor
    attention: Tensor


class Kept(NamedTuple):
    """What was kept of a video: int64 [k] tokens, and float32 [k, d] features; the tokens are None if not known."""

    tokens: Tensor | None
    features: Tensor


def random_video(num_frames: int, side: int, seed: int, changing: float = 0.5, scenes: int = 4) -> RandomVideo:
    """Return a video of a number of scenes, in which a part of the places changes from frame to frame."""
    generator = torch.Generator().manual_seed(seed)
    size = side * side
    scene = torch.randn(scenes, size, WIDTH, generator=generator)
    # Each scene has a colour, so that its mean differs from that of others.
    scene = scene + 0.5 * torch.randn(scenes, 1, WIDTH, generator=generator)
    frames = scene[torch.arange(num_frames) * scenes // num_frames]
    noise = torch.randn(num_frames, size, WIDTH, generator=generator)
    is_changing = torch.randperm(size, generator=generator) < changing * size
    features = frames + torch.where(is_changing[:, None], 1.0, 0.1) * noise
    return RandomVideo(features, torch.rand(num_frames, size, generator=generator))


def ours(method: Method, video: RandomVideo, count: int) -> Kept:
    """Return what the engine's method keeps before the language model."""
    num_frames, size, width = video.features.shape
    side = round(size**0.5)
    features, attention = video.features.reshape(-1, width), video.attention.flatten()
    layout = frame_layout(num_frames, grid_boxes(side, side), (side, side))
    image = VisualTokens(features, layout, encoder_features=lambda: features, vision_attention=lambda: attention)
    (chosen,) = method.select_visual([image], [count])
    return Kept(chosen.indices, features[chosen.indices] if chosen.features is None else chosen.features)


def compare_videos(
    description: str | None,
    budgets: Sequence[int],
    videos: Callable[[int], RandomVideo],
    official: Callable[[Path, RandomVideo, int], Kept],
    method: Method,
) -> None:
    """Print for each budget how many kept tokens and features differ, summed over the seeds.

    A feature differs if none of the official ones equals it to 1e-4.

    Parameters
    ----------
    official : returns what the official code keeps at a budget, which it may miss.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("checkout", type=Path, help="folder of the official repository")
    checkout = parser.parse_args().checkout
    total = videos(0).attention.numel()
    print(f"| budget of {total} | official code keeps | tokens that differ | features that differ |")
    print("| --- | --- | --- | --- |")
    for count in budgets:
        kept, differing, unlike = 0, 0, 0
        for seed in SEEDS:
            video = videos(seed)
            # The code adds random noise to densities.
            with mock.patch.multiple("torch", rand=torch.zeros, rand_like=torch.zeros_like):
                theirs = official(checkout, RandomVideo(video.features.clone(), video.attention.clone()), count)
            mine = ours(method, video, count)
            kept += len(theirs.features)
            distances = torch.cdist(theirs.features, mine.features, compute_mode="donot_use_mm_for_euclid_dist")
            unlike += int((distances.amin(dim=1) > 1e-4).sum())
            if theirs.tokens is not None and mine.tokens is not None:
                differing += len(set(theirs.tokens.tolist()) - set(mine.tokens.tolist()))
        known = f"{differing} of {kept}" if theirs.tokens is not None else "not known"
        print(f"| {count} | {kept / len(SEEDS):g} | {known} | {unlike} of {kept} |")


def places_of(kept: Tensor, video: RandomVideo) -> Tensor:
    """Return which tokens of a video have these features: int64 [k]."""
    flat = video.features.flatten(0, 1)
    return torch.cdist(kept, flat, compute_mode="donot_use_mm_for_euclid_dist").argmin(dim=1)
