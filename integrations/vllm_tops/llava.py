"""LLaVA-1.5 in vLLM, pruned: one picture, one grid of tokens."""

from typing import Any

import torch
from vllm.model_executor.models.llava import (
    LlavaDummyInputsBuilder,
    LlavaForConditionalGeneration,
    LlavaMultiModalProcessor,
    LlavaProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY

from tops_engine.media.layout import VisualLayout, grid_boxes
from vllm_tops.llavas import CountsKept, WithTower
from vllm_tops.requests import KeepPerRequest, keeps_of


class PrunedLlavaInfo(CountsKept, LlavaProcessingInfo): ...


class PrunedLlavaProcessor(KeepPerRequest, LlavaMultiModalProcessor): ...


@MULTIMODAL_REGISTRY.register_processor(
    PrunedLlavaProcessor, info=PrunedLlavaInfo, dummy_inputs=LlavaDummyInputsBuilder
)
class PrunedLlava(WithTower, LlavaForConditionalGeneration):
    """vLLM's LLaVA-1.5, with the chosen tokens of each picture in the place of all."""

    def embed_multimodal(self, **kwargs: Any) -> Any:
        """The remaining tokens of each picture; embeddings that a request brings along stay as they are."""
        keeps = keeps_of(kwargs)
        if kwargs.get("pixel_values") is None:
            return super().embed_multimodal(**kwargs)
        with self._tower.listening() as seen:
            features = super().embed_multimodal(**kwargs)
        side = self._side
        layout = VisualLayout(grid_boxes(side, side), torch.zeros(side**2, dtype=torch.int64), ((side, side),))
        return seen.prune(features, [layout] * len(features), lambda values, number: values[number], keeps)
