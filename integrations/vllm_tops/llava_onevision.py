"""LLaVA-OneVision in vLLM, pruned: pictures as in LLaVA-NeXT, scaled down where they make too many tokens.

Videos are not pruned.
"""

from types import SimpleNamespace
from typing import Any

from torch import Tensor
from vllm.model_executor.models.llava_onevision import (
    LlavaOnevisionDummyInputsBuilder,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionMultiModalProcessor,
    LlavaOnevisionProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY

from tops_engine.families.llava_onevision import pack_numbers
from vllm_tops.llava_next import prune_tiled
from vllm_tops.requests import KeepPerRequest, announced_tokens, keeps_of
from vllm_tops.tower import llava_tower, require_plain_tower


class PrunedLlavaOnevisionInfo(LlavaOnevisionProcessingInfo):
    """Announces the tokens that will remain of a picture."""

    def get_num_image_tokens(self, *, image_width: int, image_height: int) -> int:
        require_plain_tower(self.get_hf_config())
        all_tokens = super().get_num_image_tokens(image_width=image_width, image_height=image_height)
        return announced_tokens(all_tokens)


class PrunedLlavaOnevisionProcessor(KeepPerRequest, LlavaOnevisionMultiModalProcessor): ...


@MULTIMODAL_REGISTRY.register_processor(
    PrunedLlavaOnevisionProcessor, info=PrunedLlavaOnevisionInfo, dummy_inputs=LlavaOnevisionDummyInputsBuilder
)
class PrunedLlavaOnevision(LlavaOnevisionForConditionalGeneration):
    """vLLM's LLaVA-OneVision, with the chosen tokens of each picture in the place of all."""

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        self._tower = llava_tower(self)

    def embed_multimodal(self, **kwargs: Any) -> Any:
        """The remaining tokens of each picture; videos, and embeddings a request brings along, stay as they are."""
        keeps = keeps_of(kwargs)
        pixel_values, image_sizes = kwargs.get("pixel_values"), kwargs.get("image_sizes")
        if pixel_values is None or image_sizes is None:
            return super().embed_multimodal(**kwargs)
        with self._tower.listening() as seen:
            features = super().embed_multimodal(**kwargs)
        side = self.config.vision_config.image_size // self.config.vision_config.patch_size
        num_tiles = [len(tiles) for tiles in pixel_values]
        return prune_tiled(seen, features, num_tiles, image_sizes, side, self._pack, keeps)

    def _pack(self, tiles: Tensor, size: Tensor, newline: Tensor) -> Tensor:
        """As vLLM packs the tokens: [tiles, patches, c] to [n, c]."""
        if not tiles.is_floating_point():
            return pack_numbers(tiles, lambda shares, newline: self._pack(shares, size, newline))
        model: Any = SimpleNamespace(config=self.config)
        pack = LlavaOnevisionForConditionalGeneration._merge_image_patch_embeddings
        return pack(model, size, tiles, image_newline=newline, strategy="spatial_unpad")
