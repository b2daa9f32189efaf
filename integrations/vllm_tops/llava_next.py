"""Prune LLaVA-NeXT in vLLM. A picture is an overview and tiles, with a newline token after each row of patches."""

from types import SimpleNamespace
from typing import Any

from torch import Tensor
from vllm.model_executor.models.llava import LlavaDummyInputsBuilder
from vllm.model_executor.models.llava_next import (
    LlavaNextForConditionalGeneration,
    LlavaNextMultiModalProcessor,
    LlavaNextProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.parse import ImageSize

from vllm_tops.llavas import CountsKept, PrunedTiles
from vllm_tops.requests import KeepPerRequest


class PrunedLlavaNextInfo(CountsKept, LlavaNextProcessingInfo):
    """Announce the kept tokens of a picture."""

    def get_image_size_with_most_features(self) -> ImageSize:
        # With a budget in tokens, all pictures keep the same number; the largest unpruned one needs the most memory.
        return LlavaNextProcessingInfo(self.ctx).get_image_size_with_most_features()


class PrunedLlavaNextProcessor(KeepPerRequest, LlavaNextMultiModalProcessor): ...


@MULTIMODAL_REGISTRY.register_processor(
    PrunedLlavaNextProcessor, info=PrunedLlavaNextInfo, dummy_inputs=LlavaDummyInputsBuilder
)
class PrunedLlavaNext(PrunedTiles, LlavaNextForConditionalGeneration):
    """vLLM's LLaVA-NeXT with only the kept tokens of each picture."""

    def _pack(self, tiles: Tensor, size: Tensor, newline: Tensor) -> Tensor:
        model: Any = SimpleNamespace(config=self.config, image_newline=newline)
        pack = LlavaNextForConditionalGeneration._merge_image_patch_embeddings
        return pack(model, size, tiles, strategy="spatial_unpad")
