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

from tops_engine.layout import VisualLayout, grid_boxes
from vllm_tops.requests import KeepPerRequest, announced_tokens, keeps_of
from vllm_tops.tower import llava_tower, require_plain_tower


class PrunedLlavaInfo(LlavaProcessingInfo):
    """Announces the tokens that will remain of a picture."""

    def get_num_image_tokens(self, *, image_width: int, image_height: int) -> int:
        require_plain_tower(self.get_hf_config())
        all_tokens = super().get_num_image_tokens(image_width=image_width, image_height=image_height)
        return announced_tokens(all_tokens)


class PrunedLlavaProcessor(KeepPerRequest, LlavaMultiModalProcessor): ...


@MULTIMODAL_REGISTRY.register_processor(
    PrunedLlavaProcessor, info=PrunedLlavaInfo, dummy_inputs=LlavaDummyInputsBuilder
)
class PrunedLlava(LlavaForConditionalGeneration):
    """vLLM's LLaVA-1.5, with the chosen tokens of each picture in the place of all."""

    # vLLM would count the rows of adapters in the tower by the tokens that remain.
    supports_tower_connector_lora = False

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        self._tower = llava_tower(self)

    def embed_multimodal(self, **kwargs: Any) -> Any:
        """The remaining tokens of each picture; embeddings that a request brings along stay as they are."""
        keeps = keeps_of(kwargs)
        if kwargs.get("pixel_values") is None:
            return super().embed_multimodal(**kwargs)
        with self._tower.listening() as seen:
            features = super().embed_multimodal(**kwargs)
        side = self.config.vision_config.image_size // self.config.vision_config.patch_size
        layout = VisualLayout(grid_boxes(side, side), torch.zeros(side**2, dtype=torch.int64), ((side, side),))
        return seen.prune(features, [layout] * len(features), lambda values, number: values[number], keeps)
