"""PruneVid (arXiv 2412.16117): clusters of what is static and of each frame, then what the question attends to."""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from pydantic import Field

from tops_engine import selection
from tops_engine.device.lazy import Tensor, torch
from tops_engine.methods.base import Selection
from tops_engine.methods.per_video import FrameChoice, Frames, PerVideo
from tops_engine.methods.tokens import LayerTokens
from tops_engine.methods.two_stage import TwoStage

if TYPE_CHECKING:
    from tops_engine.selection.static_parts import Window

#: Neighbours for the density of a frame or a token.
NEIGHBOURS = 7


class PruneVid(TwoStage, PerVideo):
    """Merge what is static in a segment of a video and what changes, then keep what the question attends to.

    Segments are clusters of frames (section 3.2). Tokens whose place is alike in all frames of a segment are static and
    averaged over it; they stand in its first frame. Static tokens, and the others of each frame, are then clustered
    around density peaks, where the mean of a cluster takes the place of its centre. From layer 10 of 32 on 40 % of the
    tokens of each frame remain, those with the largest attention from any text token after the video in any head
    (section 3.3).

    The official code merges each group of more than 14 tokens to half, and keeps smaller ones; here all share the
    budget in proportion to their number. Where merging static tokens would leave fewer tokens than the budget, the
    threshold rises until enough are left. The code also deletes the dropped tokens from the caches of the layers before
    the second stage, and adds noise to densities.
    """

    name = "prunevid"
    source = "arXiv 2412.16117"
    waits_for_device = True
    second_stage = (10 / 32, 0.4)

    static_threshold: float = Field(
        default=0.8, ge=-1, le=1, description="A place is static if frames are more similar there than this."
    )
    segment_ratio: float = Field(default=0.25, gt=0, le=1, description="Clusters of frames, as a share of the frames.")

    def select_frames(self, frames: Frames, num_keep: int) -> FrameChoice:
        features = frames.features
        num_frames, size = frames.tokens.shape
        num_segments = max(1, int(self.segment_ratio * num_frames))
        lengths = selection.clustered_segments(features.mean(dim=1), num_segments, NEIGHBOURS)
        similarity = _similarity(features, lengths)
        windows = selection.lowest_threshold(
            partial(_static, similarity, lengths),
            partial(selection.num_left, size=size),
            self.static_threshold,
            num_keep,
        )
        places = torch.arange(num_frames * size, device=features.device).view(num_frames, size)
        groups = [(places[w.start][w.static], features[w.start : w.end].mean(dim=0)[w.static]) for w in windows]
        for window in windows:
            for frame in range(window.start, window.end):
                groups.append((places[frame][~window.static], features[frame][~window.static]))
        counts = selection.apportion(num_keep, [len(tokens) for tokens, _ in groups])
        kept, merged = [], []
        for (tokens, values), count in zip(groups, counts, strict=True):
            if count:
                peaks, belongs = selection.density_peaks(values, count, NEIGHBOURS)
                kept.append(tokens[peaks])
                merged.append(selection.cluster_means(values, belongs, count))
        return FrameChoice(torch.cat(kept), torch.cat(merged))

    def select_at_layer(self, images: Sequence[LayerTokens], counts: Sequence[int]) -> list[Selection]:
        return [_attended_of_each(image, count) for image, count in zip(images, counts, strict=True)]

    def selection_flops(self, num_tokens: int, num_kept: int, feature_size: int) -> int:
        # Lengths and sums over segments; the distances within groups depend on the video.
        return 4 * num_tokens * feature_size


def _similarity(features: Tensor, lengths: Sequence[int]) -> Tensor:
    """Return the mean similarity of all pairs of frames of a segment, for each place: float32 [num_segments, n].

    It is -1 in segments of one frame.
    """
    unit, rows, start = torch.nn.functional.normalize(features, dim=-1), [], 0
    for length in lengths:
        segment = unit[start : start + length]
        start += length
        pairs = segment.sum(dim=0).square().sum(dim=-1) - length
        rows.append(pairs / (length * (length - 1)) if length > 1 else torch.full_like(pairs, -1.0))
    return torch.stack(rows)


def _static(similarity: Tensor, lengths: Sequence[int], threshold: float) -> "list[Window]":
    """Return the segments with the places whose similarity exceeds the threshold."""
    windows, start = [], 0
    for row, length in zip(similarity, lengths, strict=True):
        static = (row > threshold) if length > 1 else torch.zeros_like(row, dtype=torch.bool)
        windows.append(selection.Window(start, start + length, static))
        start += length
    return windows


def _attended_of_each(image: LayerTokens, count: int) -> Selection:
    """Return the same share of the tokens of each frame, those that any text token attends to most in any head."""
    scores = image.attention("text", layer="previous", heads="max").amax(dim=0)
    if image.layout.frame is None:
        return Selection.highest(scores, count)
    frames = image.layout.frame.to(image.kept.device)[image.kept]
    members = [(frames == frame).nonzero().flatten() for frame in sorted(set(frames.tolist()))]
    counts = selection.apportion(count, [len(tokens) for tokens in members])
    best = [tokens[selection.top_tokens(scores[tokens], k)] for tokens, k in zip(members, counts, strict=True)]
    return Selection(torch.cat(best).sort().values)
