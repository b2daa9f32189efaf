"""LLaVA-NeXT in vLLM, pruned: an overview and tiles, with a newline token after each row of patches."""

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from vllm.model_executor.models.llava import LlavaDummyInputsBuilder
from vllm.model_executor.models.llava_next import (
    LlavaNextForConditionalGeneration,
    LlavaNextMultiModalProcessor,
    LlavaNextProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.parse import ImageSize

from tops_engine.layout import newline_layout
from vllm_tops.settings import kept_tokens, read_pruning
from vllm_tops.tower import llava_tower, require_plain_tower


class PrunedLlavaNextInfo(LlavaNextProcessingInfo):
    """Announces the tokens that will remain of a picture."""

    def get_num_image_tokens(self, *, image_width: int, image_height: int) -> int:
        require_plain_tower(self.get_hf_config())
        all_tokens = super().get_num_image_tokens(image_width=image_width, image_height=image_height)
        return kept_tokens(read_pruning(), all_tokens)

    def get_image_size_with_most_features(self) -> ImageSize:
        # A fixed number of tokens stays of every picture; the one with most of them before is what needs most memory.
        return LlavaNextProcessingInfo(self.ctx).get_image_size_with_most_features()


@MULTIMODAL_REGISTRY.register_processor(
    LlavaNextMultiModalProcessor, info=PrunedLlavaNextInfo, dummy_inputs=LlavaDummyInputsBuilder
)
class PrunedLlavaNext(LlavaNextForConditionalGeneration):
    """vLLM's LLaVA-NeXT, with the chosen tokens of each picture in the place of all."""

    # vLLM would count the rows of adapters in the tower by the tokens that remain.
    supports_tower_connector_lora = False

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        self._tower = llava_tower(self)

    def embed_multimodal(self, **kwargs: Any) -> Any:
        """The remaining tokens of each picture; embeddings that a request brings along stay as they are."""
        pixel_values, image_sizes = kwargs.get("pixel_values"), kwargs.get("image_sizes")
        if pixel_values is None or image_sizes is None:
            return super().embed_multimodal(**kwargs)
        with self._tower.listening() as seen:
            features = super().embed_multimodal(**kwargs)
        num_tiles = [len(tiles) for tiles in pixel_values]

        def arrange(values: Tensor, number: int) -> Tensor:
            tiles = torch.split(values, num_tiles)[number]
            return self._pack(tiles, image_sizes[number], values.new_zeros(values.shape[-1]))

        side = self.config.vision_config.image_size // self.config.vision_config.patch_size
        marked = [
            self._pack(torch.zeros(count, side**2, 1), size, torch.ones(1))[side**2 :, 0] == 1
            for count, size in zip(num_tiles, image_sizes, strict=True)
        ]
        return seen.prune(features, [newline_layout(side, newlines) for newlines in marked], arrange)

    def _pack(self, tiles: Tensor, size: Tensor, newline: Tensor) -> Tensor:
        """Values of patches the way vLLM packs their tokens, with another newline: [tiles, patches, c] to [n, c]."""
        model: Any = SimpleNamespace(config=self.config, image_newline=newline)
        pack = LlavaNextForConditionalGeneration._merge_image_patch_embeddings
        return pack(model, size, tiles, strategy="spatial_unpad")
