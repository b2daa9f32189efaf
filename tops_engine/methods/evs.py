"""EVS, Efficient Video Sampling (arXiv 2510.14624): the tokens that changed since the frame before."""

from tops_engine import selection
from tops_engine.device.lazy import torch
from tops_engine.methods.per_video import FrameChoice, Frames, PerVideo


class EVS(PerVideo):
    """Keep the first frame of a video, and then the tokens that differ most from the same place in the frame before.

    As in vLLM and SGLang, tokens are compared by the cosine similarity of projected tokens; the paper (section 3)
    compares pixels. vLLM raises a budget below one frame to one frame. Here such a budget is met, by tokens of the
    first frame at even distances; so it is with a picture, which has no frame before.
    """

    name = "evs"
    source = "arXiv 2510.14624"

    def select_frames(self, frames: Frames, num_keep: int) -> FrameChoice:
        features = frames.features
        size = features.shape[1]
        if num_keep < size:
            return FrameChoice(selection.spread_evenly(size, num_keep, features.device))
        changes = 1 - torch.cosine_similarity(features[1:], features[:-1], dim=-1)
        first = changes.new_full((size,), torch.inf)
        return FrameChoice(selection.top_tokens(torch.cat([first, changes.flatten()]), num_keep))

    def selection_flops(self, num_tokens: int, num_kept: int, feature_size: int) -> int:
        # A product with the frame before, and two lengths.
        return 6 * num_tokens * feature_size
