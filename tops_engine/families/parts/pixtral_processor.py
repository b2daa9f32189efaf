"""Pixtral's processor without torchvision, which transformers' own needs for counting the tokens of a picture."""

from collections.abc import Mapping
from typing import Any

from transformers import ProcessorMixin


class PixtralProcessor(ProcessorMixin):  # type: ignore[misc]  # transformers types it as Any
    """Write a picture as rows of picture tokens, with a token after each row and another after the last.

    Parameters
    ----------
    patch_size : pixels along a side of a patch of the vision tower.
    spatial_merge_size : patches along a side of the block that becomes one token.
    image_token, image_break_token, image_end_token : of a block of patches, after a row, after the last row.
    """

    def __init__(
        self,
        image_processor: Any,
        tokenizer: Any,
        patch_size: int = 16,
        spatial_merge_size: int = 1,
        chat_template: str | None = None,
        image_token: str = "[IMG]",
        image_break_token: str = "[IMG_BREAK]",
        image_end_token: str = "[IMG_END]",
        **_options: Any,
    ) -> None:
        super().__init__(image_processor, tokenizer, chat_template=chat_template)
        self.patch_size = patch_size
        self.spatial_merge_size = spatial_merge_size
        self.image_token, self.image_break_token, self.image_end_token = image_token, image_break_token, image_end_token
        self.image_token_id, self.image_break_token_id, self.image_end_token_id = tokenizer.convert_tokens_to_ids(
            [image_token, image_break_token, image_end_token]
        )

    def _process_images(self, images: Any, **options: Any) -> Any:
        # A picture is scaled to whole blocks.
        return super()._process_images(images, **options | {"patch_size": self.patch_size * self.spatial_merge_size})

    def replace_image_token(self, image_inputs: Mapping[str, Any], image_idx: int, **_options: Any) -> str:
        """Return the tokens of the picture ``image_idx``."""
        block = self.patch_size * self.spatial_merge_size
        rows, columns = (int(side) // block for side in image_inputs["image_sizes"][image_idx])
        row = self.image_token * columns
        return self.image_break_token.join([row] * rows) + self.image_end_token
