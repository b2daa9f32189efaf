"""VidCom2 (arXiv 2505.14454): of each frame, the tokens that are least like the video and the frame."""

from tops_engine import selection
from tops_engine.device.lazy import Tensor, torch
from tops_engine.methods.per_video import FrameChoice, Frames, PerVideo

#: The variances of the Gaussian kernels whose sum is the similarity.
VARIANCES = tuple(2.0**exponent for exponent in range(-3, 2))

#: Of the softmax that divides the budget among frames.
TEMPERATURE = 0.01


class VidCom2(PerVideo):
    """Keep of each frame the tokens that are least like the video and the frame, more of frames unlike the video.

    Similarities are Gaussian kernels of the distance from the mean of the video and from that of the frame, over the
    half of the channels that vary least (section 3 of the paper, official code). Rounding the budgets of frames misses
    the budget of the video; as in vLLM's version, the tokens with the highest similarity are then dropped, or those
    with the lowest added. Scores are float32. In a single frame nothing but the similarity to its mean counts.
    """

    name = "vidcom2"
    source = "arXiv 2505.14454"

    def select_frames(self, frames: Frames, num_keep: int) -> FrameChoice:
        features = frames.features
        size, num_channels = features.shape[1:]
        variances = features.flatten(0, 1).var(dim=0, correction=0)
        channels = variances.argsort(stable=True)[: max(1, num_channels // 2)]
        unit = torch.nn.functional.normalize(features[..., channels], dim=-1)
        to_video = kernels(unit, unit.mean(dim=(0, 1)))
        score = to_video + kernels(unit, unit.mean(dim=1, keepdim=True))
        parts = (-to_video.mean(dim=1) / TEMPERATURE).softmax(dim=0)
        shares = (num_keep / frames.num_tokens * (1 + parts - parts.mean())).clamp(max=1)
        kept = selection.lowest_of_each(score, (shares * size).round().clamp(min=1))
        # Kept tokens first, and of each kind those with the lowest score.
        order = score.flatten().argsort(stable=True)
        order = order[(~kept).flatten()[order].byte().argsort(stable=True)]
        return FrameChoice(order[:num_keep])

    def selection_flops(self, num_tokens: int, num_kept: int, feature_size: int) -> int:
        # Variances of all channels; means and distances of half of them.
        return 8 * num_tokens * feature_size


def kernels(tokens: Tensor, centre: Tensor) -> Tensor:
    """Return the similarity of tokens [..., d] to a centre [..., d]: a sum of Gaussian kernels, float [...]."""
    distances = (tokens - centre).square().sum(dim=-1)
    return torch.stack([(-distances / (2 * variance)).exp() for variance in VARIANCES]).sum(dim=0)
