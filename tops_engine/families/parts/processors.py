"""Processors of checkpoints without their video processors, which need torchvision.

The families read videos themselves: the placeholders of videos are expanded before a processor reads the text.
"""

import functools
from typing import Any

from transformers import LlavaOnevisionProcessor


@functools.cache
def without_video(processor_class: Any) -> Any:
    """Return a subclass of a processor class that has no video processor.

    transformers reads from the constructor's signature which parts to load.

    Parameters
    ----------
    processor_class : takes ``image_processor``, ``tokenizer``, ``video_processor`` and ``chat_template``.
    """

    def __init__(  # noqa: N807
        self: Any, image_processor: Any = None, tokenizer: Any = None, chat_template: str | None = None, **options: Any
    ) -> None:
        processor_class.__init__(self, image_processor, tokenizer, None, chat_template=chat_template, **options)
        self.video_token = None

    return type(processor_class.__name__, (processor_class,), {"__init__": __init__})


class OnevisionPictureProcessor(LlavaOnevisionProcessor):  # type: ignore[misc]  # transformers types it as Any
    """LLaVA-OneVision's processor without its video processor."""

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
        self.video_token = None
