"""Prune Qwen3.5 and the mixtures of experts of Qwen3-VL and Qwen3.5 in vLLM. See :mod:`vllm_tops.qwen_vl`."""

from typing import Any

from vllm.model_executor.models.qwen3_5 import (
    Qwen3_5ForConditionalGeneration,
    Qwen3_5MoeForConditionalGeneration,
    Qwen3_5MoeProcessingInfo,
    Qwen3_5ProcessingInfo,
)
from vllm.model_executor.models.qwen3_vl import Qwen3VLDummyInputsBuilder
from vllm.model_executor.models.qwen3_vl_moe import Qwen3VLMoeForConditionalGeneration, Qwen3VLMoeProcessingInfo
from vllm.multimodal import MULTIMODAL_REGISTRY

from vllm_tops.qwen_vl import PrunedQwen3, PrunedQwen3Info, PrunedQwen3VLProcessor


class PrunedQwen3VLMoeInfo(PrunedQwen3Info, Qwen3VLMoeProcessingInfo): ...


@MULTIMODAL_REGISTRY.register_processor(
    PrunedQwen3VLProcessor, info=PrunedQwen3VLMoeInfo, dummy_inputs=Qwen3VLDummyInputsBuilder
)
class PrunedQwen3VLMoe(PrunedQwen3, Qwen3VLMoeForConditionalGeneration):
    """vLLM's Qwen3-VL with experts, with only the kept tokens of each picture and video."""


class PrunedHybridQwen(PrunedQwen3):
    """Base class of the pruned models that have layers with linear attention."""

    @staticmethod
    def get_model_state_cls() -> type[Any]:
        from vllm_tops.qwen_state import HybridQwenState

        return HybridQwenState


class PrunedQwen35Info(PrunedQwen3Info, Qwen3_5ProcessingInfo): ...


@MULTIMODAL_REGISTRY.register_processor(
    PrunedQwen3VLProcessor, info=PrunedQwen35Info, dummy_inputs=Qwen3VLDummyInputsBuilder
)
class PrunedQwen35(PrunedHybridQwen, Qwen3_5ForConditionalGeneration):
    """vLLM's Qwen3.5 with only the kept tokens of each picture and video."""


class PrunedQwen35MoeInfo(PrunedQwen3Info, Qwen3_5MoeProcessingInfo): ...


@MULTIMODAL_REGISTRY.register_processor(
    PrunedQwen3VLProcessor, info=PrunedQwen35MoeInfo, dummy_inputs=Qwen3VLDummyInputsBuilder
)
class PrunedQwen35Moe(PrunedHybridQwen, Qwen3_5MoeForConditionalGeneration):
    """vLLM's Qwen3.5 with experts, with only the kept tokens of each picture and video."""
