"""Prune LLaVA-1.5 in vLLM. A picture is one grid of tokens."""

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
    """vLLM's LLaVA-1.5 with only the kept tokens of each picture."""

    def embed_multimodal(self, **kwargs: Any) -> Any:
        """Return the kept tokens of each picture; do not change embeddings that the request contains."""
        keeps = keeps_of(kwargs)
        if kwargs.get("pixel_values") is None:
            return super().embed_multimodal(**kwargs)
        with self._tower.listening() as seen:
            features = super().embed_multimodal(**kwargs)
        side = self._side
        layout = VisualLayout(grid_boxes(side, side), torch.zeros(side**2, dtype=torch.int64), ((side, side),))
        return seen.prune(features, [layout] * len(features), lambda values, number: values[number], keeps)
