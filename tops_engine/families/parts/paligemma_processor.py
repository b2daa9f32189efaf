"""PaliGemma's processor for prompts with any number of pictures: transformers' own takes none without a picture."""

from collections.abc import Mapping
from typing import Any

import torch
from transformers import BatchFeature, ProcessorMixin


class PaliGemmaProcessor(ProcessorMixin):  # type: ignore[misc]  # transformers types it as Any
    """Write a picture as its tokens, and mark the whole prompt as what attends both ways."""

    def __init__(self, image_processor: Any, tokenizer: Any, chat_template: str | None = None, **_options: Any) -> None:
        super().__init__(image_processor, tokenizer, chat_template=chat_template)
        self.image_token = "<image>"
        self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
        # The chat template writes the token that begins a text, behind the pictures.
        tokenizer.add_bos_token = tokenizer.add_eos_token = False

    def __call__(self, images: Any = None, text: Any = None, **options: Any) -> BatchFeature:
        made = super().__call__(images=images, text=text, **options)
        made["token_type_ids"] = torch.zeros_like(made["input_ids"])
        return made

    def replace_image_token(self, _image_inputs: Mapping[str, Any], image_idx: int, **_options: Any) -> str:
        """Return the tokens of a picture, which all have the same number."""
        return self.image_token * int(self.image_processor.image_seq_length)
