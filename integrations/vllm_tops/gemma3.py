"""Prune Gemma 3 in vLLM. A picture is one square of tokens, each the mean of 4 x 4 patches of a SigLIP tower."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from vllm.model_executor.models.gemma3_mm import (
    Gemma3DummyInputsBuilder,
    Gemma3ForConditionalGeneration,
    Gemma3MultiModalProcessor,
    Gemma3ProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY

from tops_engine.errors import InvalidInput
from tops_engine.families.parts.tile_grid import block_means
from tops_engine.families.parts.vision_signals import Call, captured_calls
from tops_engine.media.layout import VisualLayout, grid_boxes
from vllm_tops.placeholders import announce_kept
from vllm_tops.requests import KeepPerRequest, announced_tokens, keeps_of
from vllm_tops.tower import PatchPass, Tower, WithoutTowerGraph, tile_numbers


class PrunedGemma3Info(Gemma3ProcessingInfo):
    """Count the kept tokens of a picture."""

    def get_num_image_tokens(self, **picture: Any) -> int:
        return announced_tokens(super().get_num_image_tokens(**picture))

    def get_num_crops(self, **picture: Any) -> int:
        crops: int = super().get_num_crops(**picture)
        if crops:
            raise InvalidInput("TOPS does not prune pictures that are cut into crops; leave out do_pan_and_scan.")
        return crops


class PrunedGemma3Processor(KeepPerRequest, Gemma3MultiModalProcessor):
    """Announce the kept tokens of a picture."""

    def _get_prompt_updates(
        self, mm_items: Any, hf_processor_mm_kwargs: Mapping[str, Any], out_mm_kwargs: Any
    ) -> Sequence[Any]:
        updates = super()._get_prompt_updates(mm_items, hf_processor_mm_kwargs, out_mm_kwargs)
        return [announce_kept(update, mm_items) for update in updates]


@MULTIMODAL_REGISTRY.register_processor(
    PrunedGemma3Processor, info=PrunedGemma3Info, dummy_inputs=Gemma3DummyInputsBuilder
)
class PrunedGemma3(WithoutTowerGraph, Gemma3ForConditionalGeneration):
    """vLLM's Gemma 3 with only the kept tokens of each picture."""

    def embed_multimodal(self, **kwargs: Any) -> Any:
        """Return the kept tokens of each picture."""
        keeps = keeps_of(kwargs)
        if kwargs.get("pixel_values") is None:
            return super().embed_multimodal(**kwargs)
        with self._listening() as seen:
            features = super().embed_multimodal(**kwargs)
        side = self.multi_modal_projector.tokens_per_side
        layout = VisualLayout(grid_boxes(side, side), torch.zeros(side**2, dtype=torch.int64), ((side, side),))
        return seen.prune(features, [layout] * len(features), lambda values, number: values[number], keeps)

    @contextmanager
    def _listening(self) -> Iterator["Gemma3Pass"]:
        norm = self.multi_modal_projector.mm_soft_emb_norm
        tower = Tower(self.vision_tower.vision_model.encoder.layers[-1:], norm, has_cls=False)
        with captured_calls(tower.attention.qkv_proj, norm) as (qkv, pooled):
            yield Gemma3Pass(self, tower, qkv, pooled)


class Gemma3Pass(PatchPass):
    """One run of a tower whose patches are averaged in blocks before the projector."""

    def __init__(self, model: PrunedGemma3, tower: Tower, qkv: Call, pooled: Call) -> None:
        super().__init__(tower, qkv, [])
        self._weight = model.multi_modal_projector.mm_input_projection_weight
        self._block = int(model.multi_modal_projector.kernel_size)
        self._pooled = pooled
        self.projector = self._project

    def _project(self, rows: Tensor) -> Tensor:
        return self.tower.projector(rows) @ self._weight

    def signals(self) -> dict[str, Callable[[], Tensor]]:
        return {
            "vision_attention": lambda: block_means(self.vision_attention()[..., None], self._block)[..., 0],
            "vision_keys": lambda: block_means(self.vision_keys(), self._block),
            "encoder_features": lambda: self._pooled.input,
            "tiles": lambda: tile_numbers(self._pooled.input),
        }
