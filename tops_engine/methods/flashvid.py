"""FlashVID (arXiv 2602.08024): attended tokens that differ, and trees of tokens that follow each other in time."""

import math
from collections.abc import Sequence

from pydantic import Field

from tops_engine import selection
from tops_engine.device.lazy import Tensor, torch
from tops_engine.methods.base import Selection
from tops_engine.methods.per_video import FrameChoice, Frames, PerVideo
from tops_engine.methods.tokens import LayerTokens
from tops_engine.methods.two_stage import TwoStage

#: Neighbours for the density of a token.
NEIGHBOURS = 7


class FlashVID(TwoStage, PerVideo):
    """Keep attended tokens of each frame that differ from each other, and merge the others over time and in a frame.

    The video is cut where frames change most. In each frame tokens are chosen for attention and diversity (section
    3.2). Each other token joins the token of the frame before that is most similar to it, if it is similar enough; the
    trees of joined tokens are averaged, and then clustered around density peaks in each frame (section 3.3). From layer
    20 of 28 on 30 % of the tokens remain, those with the most attention from the last token of the prompt.

    A tree is the mean of all of its tokens, as in the paper. The official code divides the sum of a tree that reaches
    over three or more frames by less than the number of its tokens. It also rounds up the numbers of each frame, and in
    segments of one frame clusters the chosen tokens once more. Attention is the mean that a token gets in the vision
    layer that feeds the projector, or that of [CLS].
    """

    name = "flashvid"
    source = "arXiv 2602.08024"
    waits_for_device = True
    signals = ("vision_attention",)
    second_stage = (20 / 28, 0.3)

    unmerged: float = Field(default=0.7, ge=0, le=1, description="Share of the budget for tokens that are not merged.")
    segments: int = Field(default=8, ge=1, description="The least number of segments.")
    segment_threshold: float = Field(
        default=0.9, ge=-1, le=1, description="Cut the video where consecutive frames are less similar than this."
    )
    merge_threshold: float = Field(
        default=0.8, ge=-1, le=1, description="Merge tokens of consecutive frames that are more similar than this."
    )

    def select_frames(self, frames: Frames, num_keep: int) -> FrameChoice:
        features = frames.features
        num_frames, size = frames.tokens.shape
        lengths = selection.unlike_segments(features.mean(dim=1), self.segment_threshold, self.segments)
        budgets = selection.apportion(num_keep, [size] * num_frames)
        places, merged, start = [], [], 0
        for length in lengths:
            part = slice(start, start + length)
            choice = self._select_segment(features[part], frames.attention[part], budgets[part])
            assert choice.features is not None
            places.append(choice.places + start * size)
            merged.append(choice.features)
            start += length
        return FrameChoice(torch.cat(places), torch.cat(merged))

    def select_at_layer(self, images: Sequence[LayerTokens], counts: Sequence[int]) -> list[Selection]:
        rows = [image.attention("last", layer="previous")[0] for image in images]
        return [Selection.highest(row, count) for row, count in zip(rows, counts, strict=True)]

    def selection_flops(self, num_tokens: int, num_kept: int, feature_size: int) -> int:
        # All pairs within a frame and with the frame before, for frames of about 200 tokens as in the paper.
        return 2 * num_tokens * min(num_tokens, 2 * 200) * feature_size

    def _select_segment(self, features: Tensor, attention: Tensor, budgets: Sequence[int]) -> FrameChoice:
        size = attention.shape[1]
        tokens = features.flatten(0, 1)
        chosen = [math.ceil(self.unmerged * budget) for budget in budgets]
        kept = torch.cat(
            [
                selection.max_min_select(features[frame], count, attention[frame]) + frame * size
                for frame, count in enumerate(chosen)
                if count
            ]
            or [torch.arange(0, device=tokens.device)]
        )
        num_others = sum(budgets) - len(kept)
        places, merged = [kept], [tokens[kept]]
        if num_others:
            others = torch.ones_like(attention, dtype=torch.bool)
            others.view(-1)[kept] = False
            roots, means = merge_over_time(features, others, self.merge_threshold, sum(budgets))
            members = [(roots // size == frame).nonzero().flatten() for frame in range(len(budgets))]
            counts = selection.apportion(num_others, [len(part) for part in members])
            for part, count in zip(members, counts, strict=True):
                if count:
                    peaks, belongs = selection.density_peaks(means[part], count, min(count, NEIGHBOURS))
                    places.append(roots[part][peaks])
                    merged.append(selection.cluster_means(means[part], belongs, count))
        return FrameChoice(torch.cat(places), torch.cat(merged))


def merge_over_time(features: Tensor, joining: Tensor, threshold: float, least: int) -> tuple[Tensor, Tensor]:
    """Join each token to the most similar one of the frame before, if it is more similar than a threshold.

    Parameters
    ----------
    features : float [num_frames, n, d].
    joining : bool [num_frames, n], which tokens may join and be joined.
    least : how many of all tokens, those that may not join included, remain at least; the threshold rises for it.

    Returns
    -------
    int64 [k], the joining tokens that remain, in the flattened frames, and the means of their trees, [k, d].
    """
    num_frames, size = joining.shape
    unit = torch.nn.functional.normalize(features, dim=-1)
    similarity = (unit[1:] @ unit[:-1].mT).masked_fill(~(joining[1:, :, None] & joining[:-1, None]), -1.0)
    best, parents = similarity.max(dim=2)
    best = torch.cat([best.new_full((1, size), -1.0), best])
    most_joins = best.numel() - least
    if int((best > threshold).sum()) > most_joins:
        threshold = max(float(best.flatten().topk(most_joins).values[-1]), -1 + 1e-6) if most_joins else math.inf
    joins = best > threshold
    sums, counts = features.clone(), torch.ones_like(best)
    for frame in range(num_frames - 1, 0, -1):
        moved = joins[frame]
        # A product, not index_add, which is not repeatable on a GPU.
        tree = torch.nn.functional.one_hot(parents[frame - 1][moved], size).to(sums.dtype).T
        sums[frame - 1] += tree @ sums[frame][moved]
        counts[frame - 1] += tree @ counts[frame][moved]
    roots = (joining & ~joins).flatten().nonzero().flatten()
    return roots, (sums / counts[..., None]).flatten(0, 1)[roots]
