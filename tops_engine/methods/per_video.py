"""The base classes of methods for videos, which share one view of the frames of a video."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal

from pydantic import Field

from tops_engine import selection
from tops_engine.budget import Keep, Stage, at_same_depth, stages_for, stages_inside
from tops_engine.device.lazy import Tensor, torch
from tops_engine.methods.base import Method, Selection, VisualTokens

#: The layer, of 32, of a second stage without a first.
SECOND_STAGE_ALONE = 2


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


class PerVideoAndLayer(PerVideo, register=False):
    """Base class of methods for videos that prune once more between the layers of the language model.

    Alone, the second stage is at layer 2 of 32 instead, where it can meet small budgets.

    Attributes
    ----------
    second_stage : where the second stage starts, as a fraction of the layers, and the share of the tokens of the first
        stage that it keeps.
    """

    first_stage_options: ClassVar[dict[str, Any]] = {"stages": "first"}
    second_stage_options: ClassVar[dict[str, Any]] = {"stages": "second"}
    second_stage: ClassVar[tuple[float, float]]

    stages: Literal["both", "first", "second"] = Field(
        default="both",
        description="Prune at both stages, only before the language model (first) or only between its layers (second).",
    )

    @property
    def prunes_before_the_llm(self) -> bool:
        return self.stages != "second"

    @property
    def prunes_between_layers(self) -> bool:
        return self.stages != "first"

    def plan(self, num_visual_tokens: int, num_layers: int, keep: Keep) -> tuple[Stage, ...]:
        depth, share = self.second_stage
        if self.stages == "first":
            return super().plan(num_visual_tokens, num_layers, keep)
        if self.stages == "second":
            layers = at_same_depth((SECOND_STAGE_ALONE,), 32, num_layers)
            return stages_inside(keep, num_visual_tokens, num_layers, layers, (1.0,), option="schedule")
        return stages_for(keep, num_visual_tokens, num_layers, shape=((0.0, 1.0), (depth, share)))
