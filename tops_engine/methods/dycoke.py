"""DyCoke (arXiv 2411.15024): every fourth frame, and what changes in the three frames after it."""

from tops_engine import selection
from tops_engine.device.lazy import torch
from tops_engine.methods.per_video import FrameChoice, Frames, PerVideo

#: Frames that are pruned together; the first of them stays whole.
WINDOW = 4


class DyCoke(PerVideo):
    """Keep every fourth frame whole, and of the three after it the tokens that differ most from an earlier frame.

    This is the temporal merging of the paper (section 3.2): the second frame of four is compared with the first, the
    third with the first and the fourth with the third, by the cosine similarity of projected tokens in the same place.
    Its other part, pruning the key-value cache again for each new token (section 3.3), is left out: it chooses the
    tokens that a layer reads by the attention of every new token, and the engine decodes with a cache that no longer
    changes.

    The paper keeps 30 % of the three frames, 47.5 % in all. Here the budget sets that share. If it does not even cover
    the whole frames, their tokens at even distances stay and no others. The official code drops a last frame of odd
    number, and leaves the third frame of the last four whole; here they are pruned like the others.
    """

    name = "dycoke"
    source = "arXiv 2411.15024"

    def select_frames(self, frames: Frames, num_keep: int) -> FrameChoice:
        features = frames.features
        num_frames, size = frames.tokens.shape
        places = torch.arange(frames.num_tokens, device=features.device).view(num_frames, size)
        whole = places[::WINDOW].flatten()
        if num_keep <= len(whole):
            return FrameChoice(whole[selection.spread_evenly(len(whole), num_keep, whole.device)])
        pruned = [frame for frame in range(num_frames) if frame % WINDOW]
        kept = [whole]
        for frame, count in zip(pruned, selection.apportion(num_keep - len(whole), [size] * len(pruned)), strict=True):
            earlier = frame - (2 if frame % WINDOW == 2 else 1)
            changes = 1 - torch.cosine_similarity(features[frame], features[earlier], dim=-1)
            kept.append(places[frame][selection.top_tokens(changes, count)])
        return FrameChoice(torch.cat(kept))

    def selection_flops(self, num_tokens: int, num_kept: int, feature_size: int) -> int:
        # A product with an earlier frame, and two lengths.
        return 6 * num_tokens * feature_size
