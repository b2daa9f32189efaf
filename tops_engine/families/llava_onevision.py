"""LLaVA-OneVision: one picture in up to 36 tiles, several pictures or the frames of videos whole; SigLIP, no [CLS]."""

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers import LlavaOnevisionProcessor

from tops_engine.families.llava import padded_area
from tops_engine.families.llava_frames import LlavaFrames
from tops_engine.families.prompt import Prompt
from tops_engine.media.layout import VisualLayout, grid_boxes

CLIP_COLOURS: dict[str, Any] = {
    "image_mean": (0.48145466, 0.4578275, 0.40821073),
    "image_std": (0.26862954, 0.26130258, 0.27577711),
}


class PictureProcessor(LlavaOnevisionProcessor):  # type: ignore[misc]  # transformers types it as Any
    """The checkpoint's processor without its part for videos, which needs torchvision."""

    def __init__(
        self,
        image_processor: Any,
        tokenizer: Any,
        num_image_tokens: int = 729,
        vision_feature_select_strategy: str = "full",
        chat_template: str | None = None,
        vision_aspect_ratio: str = "anyres_max_9",
        **kwargs: Any,
    ) -> None:
        super().__init__(
            image_processor,
            tokenizer,
            None,
            num_image_tokens,
            vision_feature_select_strategy,
            chat_template,
            vision_aspect_ratio=vision_aspect_ratio,
            **kwargs,
        )
        # Placeholders of videos are expanded before it reads the text.
        self.video_token = None


class LlavaOnevision(LlavaFrames):
    """``LlavaOnevisionForConditionalGeneration``: llava-hf/llava-onevision-qwen2-0.5b-ov-hf, -7b-ov-hf, -72b-ov-hf.

    A picture alone is cut into tiles as in LLaVA-NeXT, and where these make more than nine tiles' worth of tokens they
    are scaled down. Of several pictures each is padded to a square and seen whole. A frame's tokens are scaled down to
    a quarter after the projector. What is known of patches (attention, keys, features) is scaled with the tokens; the
    projector of scaled features is only about the scaled tokens.
    """

    model_types: ClassVar[tuple[str, ...]] = ("llava_onevision",)
    checkpoints: ClassVar[dict[str, tuple[str, ...]]] = {
        "llava_onevision": tuple(f"llava-hf/llava-onevision-qwen2-{size}-ov-hf" for size in ("0.5b", "7b", "72b"))
    }
    clip_tower = False
    processor_class = PictureProcessor
    default_chat_template: ClassVar[str | None] = None
    frame_defaults: ClassVar[dict[str, Any]] = {"size": {"height": 384, "width": 384}, "resample": 3, **CLIP_COLOURS}

    def for_processor(self, images: Sequence[Image.Image]) -> Sequence[Any]:
        # Nested, several pictures count as those of one conversation.
        return [images] if len(images) > 1 else images

    def layouts(self, images: Sequence[Image.Image], pixels: dict[str, Tensor]) -> list[VisualLayout]:
        if len(images) <= 1:
            return super().layouts(images, pixels)
        view, grid = torch.zeros(self.side**2 + 1, dtype=torch.int64), (self.side, self.side)
        return [
            VisualLayout(torch.cat([grid_boxes(*grid, padded_area(image.size)), torch.zeros(1, 4)]), view, (grid,))
            for image in images
        ]

    def tile_counts(self, prompt: Prompt) -> list[int]:
        return super().tile_counts(prompt) if len(prompt.images) == 1 else [1] * len(prompt.images)

    @property
    def frame_grid(self) -> tuple[int, int]:
        return (math.ceil(self.side / 2),) * 2

    def pool(self, values: Tensor) -> Tensor:
        return self.model.model.apply_pooling(values)

    def project_frames(self, rows: Tensor) -> Tensor:
        return self.pool(self.projector(rows))

    def pack_frames(self, values: Tensor, newline: Tensor) -> Tensor:
        return torch.cat([values.flatten(0, 1), newline[None]])

    def _order(self, num_tiles: int, image_size: Tensor) -> Tensor | None:
        return None if self._is_scaled(num_tiles, image_size) else super()._order(num_tiles, image_size)

    def _pack_by_model(
        self, values: Tensor, image_size: Tensor, newline: Tensor, aspect_ratio: str | None = None
    ) -> Tensor:
        if not values.is_floating_point():
            return pack_numbers(values, lambda shares, newline: self._pack_by_model(shares, image_size, newline))
        aspect_ratio = aspect_ratio or self.model.config.vision_aspect_ratio
        packed, _ = self.model.model.pack_image_features(
            [values], image_size[None], newline, vision_aspect_ratio=aspect_ratio
        )
        return packed[0]

    def _is_scaled(self, num_tiles: int, image_size: Tensor) -> bool:
        """Whether a picture of (height, width) makes more tokens than the model takes."""
        tiles, newline = torch.zeros(num_tiles, self.side**2, 1), torch.zeros(1)
        scaled, whole = (
            self._pack_by_model(tiles, image_size, newline, ratio) for ratio in (None, f"anyres_max_{num_tiles}")
        )
        return len(scaled) < len(whole)


def pack_numbers(values: Tensor, pack: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """The number of the patches that a token shows most of, where tokens are scaled down: int64 [n, 1].

    Parameters
    ----------
    values : int64 [tiles, patches, 1].
    pack : brings values of patches, [tiles, patches, c], and a newline's, [c], into the order of tokens: [n, c].
    """
    numbers, kind = torch.unique(values, return_inverse=True)
    shares = F.one_hot(kind[..., 0], len(numbers)).float()
    shares = pack(shares, shares.new_zeros(len(numbers)))
    return torch.where(shares.any(dim=1), numbers[shares.argmax(dim=1)], 0)[:, None]
