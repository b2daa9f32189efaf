"""FastVID (arXiv 2503.11187): attended tokens of each frame, and merged ones of the frames of a segment."""

from pydantic import Field

from tops_engine import selection
from tops_engine.device.lazy import Tensor, torch
from tops_engine.methods.per_video import FrameChoice, Frames, PerVideo

#: Neighbours for the density of a token.
NEIGHBOURS = 4

#: Tokens are merged into the last frame of a segment and every fourth before it.
ANCHOR_STEP = 4

#: The least weight of a token among those that are merged into it.
OWN_WEIGHT = 0.6


class FastVID(PerVideo):
    """Keep the most attended tokens of each frame, and merge the others of a segment into its last and every 4th frame.

    The video is cut where frames change most (section 3.3). Of the budget of a segment, ``contextual`` goes to density
    peaks of the frames that others are merged into, and the rest to the most attended tokens of each frame (section
    3.4). The mean of the projected tokens stands for a frame, as in the official code for Qwen2.5-VL. There and for
    LLaVA-Video it reads the attention of the vision tower's last layer or pooling head; here it is the mean attention
    that a token gets in the layer that feeds the projector, or that of [CLS].

    The official code rounds the tokens of a frame down, keeps newline tokens beside the budget, adds noise to densities
    and stops where a frame has fewer tokens than it should keep, from about 45 % on. Here what the frame cannot hold
    goes to attended tokens of the segment.
    """

    name = "fastvid"
    source = "arXiv 2503.11187"
    waits_for_device = True
    signals = ("vision_attention",)

    contextual: float = Field(default=0.4, ge=0, le=1, description="Share of the budget for merged tokens.")
    segments: int = Field(default=8, ge=1, description="The least number of segments.")
    segment_threshold: float = Field(
        default=0.9, ge=-1, le=1, description="Cut the video where consecutive frames are less similar than this."
    )

    def select_frames(self, frames: Frames, num_keep: int) -> FrameChoice:
        features, size = frames.features, frames.tokens.shape[1]
        lengths = selection.unlike_segments(features.mean(dim=1), self.segment_threshold, self.segments)
        budgets = selection.apportion(num_keep, [length * size for length in lengths])
        places, merged, start = [], [], 0
        for length, budget in zip(lengths, budgets, strict=True):
            part = slice(start, start + length)
            choice = self._select_segment(features[part], frames.attention[part], budget)
            assert choice.features is not None
            places.append(choice.places + start * size)
            merged.append(choice.features)
            start += length
        return FrameChoice(torch.cat(places), torch.cat(merged))

    def _select_segment(self, features: Tensor, attention: Tensor, budget: int) -> FrameChoice:
        num_frames, size = attention.shape
        tokens = features.flatten(0, 1)
        salient_counts, context_counts = self._counts(num_frames, size, budget)
        salient, context = [], []
        for frame, (num_salient, num_context) in enumerate(zip(salient_counts, context_counts, strict=True)):
            ranked = selection.top_tokens(attention[frame], size)
            salient.append(ranked[:num_salient] + frame * size)
            if num_context:
                rest = ranked[num_salient:].sort().values
                peaks, _ = selection.density_peaks(features[frame][rest], num_context, NEIGHBOURS)
                context.append(rest[peaks] + frame * size)
        kept = torch.cat(salient)
        unit = torch.nn.functional.normalize(tokens, dim=-1)
        merged = [tokens[kept], *(_merged(tokens, unit, kept, anchors) for anchors in context)]
        return FrameChoice(torch.cat([kept, *context]), torch.cat(merged))

    def _counts(self, num_frames: int, size: int, budget: int) -> tuple[list[int], list[int]]:
        """Return the numbers of attended and of merged tokens of each frame of a segment."""
        num_context = int(self.contextual * budget)
        salient = selection.apportion(budget - num_context, [size] * num_frames)
        anchors = range(num_frames - 1, -1, -ANCHOR_STEP)
        shares = selection.apportion(num_context, [num_frames * size] * len(anchors))
        context = [0] * num_frames
        for frame, share in zip(anchors, shares, strict=True):
            context[frame] = min(share, size - salient[frame])
        for frame in range(num_frames):
            spare = budget - sum(salient) - sum(context)
            salient[frame] += min(spare, size - salient[frame] - context[frame])
        return salient, context

    def selection_flops(self, num_tokens: int, num_kept: int, feature_size: int) -> int:
        # Every token is compared with the merged tokens of its segment, in about as many segments as at least.
        num_merged = self.contextual * num_kept / self.segments
        return int(2 * num_tokens * num_merged * feature_size)


def _merged(tokens: Tensor, unit: Tensor, salient: Tensor, anchors: Tensor) -> Tensor:
    """Return the tokens of one frame that the others of its segment are merged into: [k, d].

    Parameters
    ----------
    tokens, unit : of the segment, and scaled to length 1, [n, d].
    salient, anchors : int64, the tokens that join no other: those that stay as they are, and the k of the frame.
    """
    nearest = (unit @ unit[anchors].mT).argmax(dim=1)
    members = torch.nn.functional.one_hot(nearest, len(anchors)).to(tokens.dtype)
    members[salient], members[anchors] = 0, 0
    counts = members.sum(dim=0)[:, None]
    own = (1 / (counts + 1)).clamp_min(OWN_WEIGHT)
    means = members.mT @ tokens / counts.clamp_min(1)
    return torch.where(counts > 0, own * tokens[anchors] + (1 - own) * means, tokens[anchors])
