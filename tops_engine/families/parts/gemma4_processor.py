"""Gemma 4's processor for pictures alone."""

from typing import Any

from transformers import Gemma4Processor, ProcessorMixin
from transformers.models.gemma4.image_processing_pil_gemma4 import get_aspect_ratio_preserving_size

VIDEO_TOKEN = "<|video|>"


class PictureProcessor(Gemma4Processor):  # type: ignore[misc]  # transformers types it as Any
    """The checkpoint's processor without its video processor, which needs torchvision, and without sound."""

    def __init__(self, image_processor: Any, tokenizer: Any, chat_template: str | None = None, **_kwargs: Any) -> None:
        # Not the constructor of Gemma4Processor, which wants processors of videos and sound.
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)
        # Older tokenizers lack it.
        tokenizer.add_special_tokens({"additional_special_tokens": [VIDEO_TOKEN]})
        self.video_token_id = tokenizer.convert_tokens_to_ids(VIDEO_TOKEN)
        # Placeholders of videos are expanded before the processor reads the text.
        self.video_token = None
        for name in ("image_token", "image_token_id", "boi_token", "eoi_token", "boa_token", "eoa_token"):
            setattr(self, name, getattr(tokenizer, name))

    def scaled_sides(self, height: int, width: int) -> tuple[int, int]:
        """Return height and width, in pixels, that a picture of another size is scaled to."""
        images = self.image_processor
        kernel = images.pooling_kernel_size
        sides = get_aspect_ratio_preserving_size(
            height, width, images.patch_size, images.max_soft_tokens * kernel**2, kernel
        )
        return int(sides[0]), int(sides[1])
