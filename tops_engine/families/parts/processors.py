"""Processors of checkpoints, without the parts that need more than the engine needs."""

import functools
from typing import Any


@functools.cache
def without_video(processor_class: Any) -> Any:
    """A processor class that has no video processor: those need torchvision, and families read videos themselves.

    Parameters
    ----------
    processor_class : takes ``image_processor``, ``tokenizer``, ``video_processor`` and ``chat_template``.

    Returns
    -------
    A subclass; transformers reads from its constructor which parts to load.
    """

    def __init__(  # noqa: N807
        self: Any, image_processor: Any = None, tokenizer: Any = None, chat_template: str | None = None, **options: Any
    ) -> None:
        processor_class.__init__(self, image_processor, tokenizer, None, chat_template=chat_template, **options)
        # The placeholders of videos are none of its business: they are expanded before it reads the text.
        self.video_token = None

    return type(processor_class.__name__, (processor_class,), {"__init__": __init__})
