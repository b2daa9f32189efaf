"""Prune LLaVA-OneVision in vLLM. Pictures are as in LLaVA-NeXT, but scaled down if they have too many tokens.

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

from tops_engine.families.parts.onevision_tiles import pack_numbers
from vllm_tops.llavas import CountsKept, PrunedTiles
from vllm_tops.requests import KeepPerRequest


class PrunedLlavaOnevisionInfo(CountsKept, LlavaOnevisionProcessingInfo): ...


class PrunedLlavaOnevisionProcessor(KeepPerRequest, LlavaOnevisionMultiModalProcessor): ...


@MULTIMODAL_REGISTRY.register_processor(
    PrunedLlavaOnevisionProcessor, info=PrunedLlavaOnevisionInfo, dummy_inputs=LlavaOnevisionDummyInputsBuilder
)
class PrunedLlavaOnevision(PrunedTiles, LlavaOnevisionForConditionalGeneration):
    """vLLM's LLaVA-OneVision with only the kept tokens of each picture."""

    def _pack(self, tiles: Tensor, size: Tensor, newline: Tensor) -> Tensor:
        if not tiles.is_floating_point():
            return pack_numbers(tiles, lambda shares, newline: self._pack(shares, size, newline))
        model: Any = SimpleNamespace(config=self.config)
        pack = LlavaOnevisionForConditionalGeneration._merge_image_patch_embeddings
        return pack(model, size, tiles, image_newline=newline, strategy="spatial_unpad")
