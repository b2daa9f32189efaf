"""What methods for videos share: segments of similar frames, and the tokens of each frame with the lowest scores."""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from tops_engine.selection.clusters import density_peaks


def lowest_of_each(scores: Tensor, counts: Tensor) -> Tensor:
    """Return which tokens have the lowest scores of their frame; of equal scores the lowest index wins.

    Parameters
    ----------
    scores : float [num_frames, n].
    counts : int64 [num_frames], how many tokens of each frame.

    Returns
    -------
    bool [num_frames, n]
    """
    ranks = scores.argsort(dim=1, stable=True).argsort(dim=1)
    return ranks < counts[:, None]


def spread_evenly(size: int, count: int, device: torch.device) -> Tensor:
    """Return ``count`` of 0 .. size - 1 at even distances, from 0 on: int64 [count], ascending."""
    return torch.arange(count, device=device) * size // max(count, 1)


def unlike_segments(frames: Tensor, threshold: float, least: int) -> list[int]:
    """Cut a video between consecutive frames that are less similar than a threshold (FastVID, arXiv 2503.11187).

    If that gives fewer than ``least`` segments, the video is also cut where frames are least similar.

    Parameters
    ----------
    frames : float [num_frames, d], a feature of each frame; compared by cosine similarity.

    Returns
    -------
    The numbers of frames of the segments.
    """
    unit = torch.nn.functional.normalize(frames.float(), dim=-1)
    similarity = (unit[1:] * unit[:-1]).sum(dim=-1)
    num_cuts = max(int((similarity < threshold).sum()), min(least - 1, len(similarity)))
    cuts = similarity.argsort(stable=True)[:num_cuts].sort().values.tolist()
    return [end - start for start, end in itertools.pairwise([0, *(cut + 1 for cut in cuts), len(frames)])]


def clustered_segments(frames: Tensor, num_clusters: int, num_neighbours: int) -> list[int]:
    """Cut a video into runs of frames of the same cluster around density peaks (PruneVid, arXiv 2412.16117).

    Parameters
    ----------
    frames : float [num_frames, d], a feature of each frame.

    Returns
    -------
    The numbers of frames of the segments.
    """
    _, clusters = density_peaks(frames, num_clusters, num_neighbours)
    return segments_of(clusters.tolist())


def segments_of(clusters: Sequence[int]) -> list[int]:
    """Return the numbers of frames of consecutive segments, given the cluster of each frame.

    Each cluster keeps its longest runs. Frames of its other runs, and of runs of one frame, join the neighbouring run
    that is longer, of equal ones the earlier.
    """
    runs = _joined([(cluster, 1) for cluster in clusters])
    longest: dict[int | None, int] = {}
    for cluster, length in runs:
        longest[cluster] = max(longest.get(cluster, 0), length)
    kept = _joined([(own if length == longest[own] and length > 1 else None, length) for own, length in runs])
    segments: list[tuple[int | None, int]] = []
    for (cluster, length), following in itertools.zip_longest(kept, kept[1:], fillvalue=(None, 0)):
        if cluster is None:
            earlier = segments[-1] if segments else (None, 0)
            cluster = earlier[0] if earlier[1] >= following[1] else following[0]
        segments = _joined([*segments, (cluster, length)])
    return [length for _, length in segments]


def _joined(runs: list[tuple[int | None, int]]) -> list[tuple[int | None, int]]:
    """Return the runs with neighbours of the same label joined."""
    joined: list[tuple[int | None, int]] = []
    for label, length in runs:
        if joined and joined[-1][0] == label:
            length += joined.pop()[1]
        joined.append((label, length))
    return joined
