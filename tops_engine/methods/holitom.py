"""HoliTom (arXiv 2505.21334): what does not change is kept once, of the rest what is attended."""

from collections.abc import Sequence
from functools import partial

from pydantic import Field

from tops_engine import selection
from tops_engine.device.lazy import Tensor, torch
from tops_engine.methods.base import Selection
from tops_engine.methods.per_video import FrameChoice, Frames, PerVideo
from tops_engine.methods.tokens import LayerTokens
from tops_engine.methods.two_stage import TwoStage

#: Neighbours for the density of a token, and the weight of a peak among the tokens that are merged into it.
NEIGHBOURS, PEAK_WEIGHT = 7, 0.6


class HoliTom(TwoStage, PerVideo):
    """Keep the parts of a video that do not change once, of the rest the most attended tokens of each frame.

    The video is cut into windows so that keeping static places once saves most tokens (section 3.2). Static tokens are
    averaged over their window, stand in its first frame, and are merged into density peaks; of the others the most
    attended of each frame stay (section 3.3). From layer 18 of 28 on half of the tokens remain, those with the most
    attention from the last token of the prompt; each dropped one is averaged into the most similar of them (section
    3.4).

    Static and other tokens share the budget in proportion to their number, as in the official code, which rounds each
    part by itself. Where keeping static parts once would leave fewer tokens than the budget, the code keeps fewer; here
    the threshold rises until enough are left. Attention is the mean that a token gets in the vision layer that feeds
    the projector, or that of [CLS]. Newline tokens are dropped; the code adds them beside the budget.
    """

    name = "holitom"
    source = "arXiv 2505.21334"
    waits_for_device = True
    signals = ("vision_attention",)
    second_stage = (18 / 28, 0.5)

    static_threshold: float = Field(
        default=0.8, ge=-1, le=1, description="A place is static if frames are more similar there than this."
    )

    def select_frames(self, frames: Frames, num_keep: int) -> FrameChoice:
        features, attention = frames.features, frames.attention
        num_frames, size = attention.shape
        similarity = torch.cosine_similarity(features[:-1], features[1:], dim=-1)
        windows = selection.lowest_threshold(
            partial(selection.static_windows, similarity),
            partial(selection.num_left, size=size),
            self.static_threshold,
            num_keep,
        )
        places = torch.arange(num_frames * size, device=features.device).view(num_frames, size)
        static = [(places[w.start][w.static], features[w.start : w.end].mean(dim=0)[w.static]) for w in windows]
        changing = [places[frame][~w.static] for w in windows for frame in range(w.start, w.end)]
        sizes = [len(tokens) for tokens, _ in static] + [len(tokens) for tokens in changing]
        counts = selection.apportion(num_keep, sizes)
        kept = [_peaks(*part, count) for part, count in zip(static, counts, strict=False) if count]
        scores, tokens = attention.flatten(), features.flatten(0, 1)
        for part, count in zip(changing, counts[len(static) :], strict=True):
            top = part[selection.top_tokens(scores[part], count)]
            kept.append((top, tokens[top]))
        return FrameChoice(torch.cat([place for place, _ in kept]), torch.cat([values for _, values in kept]))

    def select_at_layer(self, images: Sequence[LayerTokens], counts: Sequence[int]) -> list[Selection]:
        return [_attended_and_merged(image, count) for image, count in zip(images, counts, strict=True)]

    def selection_flops(self, num_tokens: int, num_kept: int, feature_size: int) -> int:
        # A product with the frame before and two lengths; the distances within static parts depend on the video.
        return 6 * num_tokens * feature_size


def _peaks(places: Tensor, features: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Merge tokens into density peaks: their places, int64 [count], and features, [count, d]."""
    peaks, belongs = selection.density_peaks(features, count, min(NEIGHBOURS, count))
    members = torch.nn.functional.one_hot(belongs, count).to(features.dtype)
    members[peaks] = 0
    sizes = members.sum(dim=0)[:, None]
    means = PEAK_WEIGHT * features[peaks] + (1 - PEAK_WEIGHT) * (members.T @ features) / sizes.clamp_min(1)
    return places[peaks], torch.where(sizes > 0, means, features[peaks])


def _attended_and_merged(image: LayerTokens, count: int) -> Selection:
    """Return the most attended tokens; the dropped ones are averaged into them one after the other."""
    kept = selection.top_tokens(image.attention("last", layer="previous")[0], count).sort().values
    dropped = selection.others(kept, len(image.hidden_states))
    values = image.hidden_states.float()
    unit = torch.nn.functional.normalize(values, dim=-1)
    joins = torch.nn.functional.one_hot((unit[dropped] @ unit[kept].mT).argmax(dim=1), count)
    # Each average halves what is there: the last token to join counts 1/2, the one before 1/4, and so on.
    from_last = joins.flip(0).cumsum(dim=0).flip(0)
    weights = joins * 0.5**from_last
    merged = 0.5 ** joins.sum(dim=0)[:, None] * values[kept] + weights.to(values.dtype).T @ values[dropped]
    return Selection(kept, features=merged.to(image.hidden_states.dtype))
