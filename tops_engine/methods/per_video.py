"""The base class of methods for videos, which share one view of the frames of a video."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from tops_engine import selection
from tops_engine.device.lazy import Tensor, torch
from tops_engine.methods.base import Method, Selection
from tops_engine.methods.tokens import VisualTokens


@dataclass(frozen=True)
class Frames:
    """The visual tokens of a video, frame by frame; a picture is a video of one frame.

    Attributes
    ----------
    image : the tokens in the order of the prompt, newline tokens included.
    tokens : int64 [num_frames, n], which of them each frame has, row by row, on the device of the features.
    """

    image: VisualTokens
    tokens: Tensor

    @cached_property
    def features(self) -> Tensor:
        """The projected tokens, float32 [num_frames, n, d]."""
        return self.image.features[self.tokens].float()

    @cached_property
    def attention(self) -> Tensor:
        """The attention that each token gets in the vision tower, float32 [num_frames, n]."""
        return self.image.vision_attention()[self.tokens]

    @property
    def num_tokens(self) -> int:
        """The number of tokens of all frames together."""
        return self.tokens.numel()


@dataclass(frozen=True)
class FrameChoice:
    """The tokens of a video that stay.

    Attributes
    ----------
    places : int64 [k], numbers in the flattened ``Frames.tokens``, in any order.
    features : float [k, d], what replaces their features, for methods that merge.
    """

    places: Tensor
    features: Tensor | None = None


class PerVideo(Method, register=False):
    """Base class of methods that choose among all frames of a video, before the language model.

    The number of tokens of all frames together is exact. A budget that covers all frames changes nothing. Newline
    tokens are dropped, except as many as the budget exceeds the tokens of the frames. A picture is a video of one
    frame.
    """

    for_videos = True
    needs_grids = True

    @abstractmethod
    def select_frames(self, frames: Frames, num_keep: int) -> FrameChoice:
        """Return ``num_keep`` tokens of a video, which has more."""

    def select_visual(self, images: Sequence[VisualTokens], counts: Sequence[int]) -> list[Selection]:
        return [self._select(image, count) for image, count in zip(images, counts, strict=True)]

    def _select(self, image: VisualTokens, count: int) -> Selection:
        from tops_engine.device.transfer import to_device  # imports torch, which reading the options does not need

        frames = Frames(image, to_device(image.layout.frame_tokens, image.features.device))
        tokens = frames.tokens.flatten()
        if count >= len(tokens):
            newlines = selection.others(tokens, len(image.features))[: count - len(tokens)]
            return Selection(torch.cat([tokens, newlines]).sort().values)
        choice = self.select_frames(frames, count)
        indices, order = tokens[choice.places].sort()
        if choice.features is None:
            return Selection(indices)
        return Selection(indices, features=choice.features[order].to(image.features.dtype))
