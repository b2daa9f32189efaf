"""Prune Idefics3 and SmolVLM in vLLM. Text tokens separate the tiles of a picture; they are always kept."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from vllm.model_executor.models.idefics3 import (
    Idefics3DummyInputsBuilder,
    Idefics3ForConditionalGeneration,
    Idefics3MultiModalProcessor,
    Idefics3ProcessingInfo,
)
from vllm.model_executor.models.smolvlm import SmolVLMProcessingInfo
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.inputs import MultiModalFieldConfig
from vllm.multimodal.parse import ImageProcessorItems, ImageSize

from tops_engine.families.parts.tile_grid import block_means, tiled_layout
from tops_engine.families.parts.vision_signals import Call, captured_calls
from vllm_tops.picture_text import TEXT, AnnouncesText, kept_among_text
from vllm_tops.requests import keeps_of
from vllm_tops.tower import PatchPass, Tower, WithoutTowerGraph, tile_numbers


class PrunedIdefics3Processor(AnnouncesText, Idefics3MultiModalProcessor):
    """Announce the kept tokens of a picture and the text between them, and tell the model how the picture was cut."""

    def _apply_hf_processor_main(self, mm_items: Any, hf_kwargs: Mapping[str, object]) -> Any:
        processed = super()._apply_hf_processor_main(mm_items, hf_kwargs)
        if "num_patches" in processed:
            images = mm_items.get_items("image", ImageProcessorItems)
            grids = [self._grid(images.get_image_size(number), hf_kwargs) for number in range(len(images))]
            processed["image_grids"] = torch.tensor(grids)
        return processed

    def _grid(self, size: ImageSize, hf_kwargs: Mapping[str, object]) -> tuple[int, int]:
        """Return rows and columns of the picture's tiles; (0, 0) if the picture is not cut."""
        processor = self.info.get_hf_processor(**hf_kwargs)
        _, rows, columns = self.info._get_image_feature_grid_size(
            image_width=size.width, image_height=size.height, processor=processor, mm_kwargs=hf_kwargs
        )
        return rows, columns

    def _get_mm_fields_config(self, hf_inputs: Any, hf_processor_mm_kwargs: Mapping[str, object]) -> Mapping[str, Any]:
        fields = super()._get_mm_fields_config(hf_inputs, hf_processor_mm_kwargs)
        return {**fields, "image_grids": MultiModalFieldConfig.batched("image", keep_on_cpu=True)}


@MULTIMODAL_REGISTRY.register_processor(
    PrunedIdefics3Processor, info=Idefics3ProcessingInfo, dummy_inputs=Idefics3DummyInputsBuilder
)
class PrunedIdefics3(WithoutTowerGraph, Idefics3ForConditionalGeneration):
    """vLLM's Idefics3 with only the kept tokens of each picture."""

    def embed_multimodal(self, **kwargs: Any) -> Any:
        """Return the kept tokens of each picture and the text between its tiles, in their order: ``[k, d]``."""
        keeps = keeps_of(kwargs)
        if kwargs.get("pixel_values") is None:
            return super().embed_multimodal(**kwargs)
        with self._listening() as seen:
            features = super().embed_multimodal(**kwargs)
        side = round(self.model.image_seq_len**0.5)
        layouts = [tiled_layout(rows, columns, side) for rows, columns in kwargs["image_grids"].tolist()]
        ends = torch.tensor([layout.num_tokens for layout in layouts]).cumsum(0).tolist()

        def arrange(values: Tensor, number: int) -> Tensor:
            return values.flatten(0, 1)[ends[number] - layouts[number].num_tokens : ends[number]]

        images = seen.images(features, layouts, arrange)
        return kept_among_text(kwargs[TEXT], self.image_token_id, images, keeps, self.model.embed_input_ids)

    @contextmanager
    def _listening(self) -> Iterator["Idefics3Pass"]:
        projector = self.model.connector.modality_projection
        tower = Tower(self.model.vision_model.encoder.layers[-1:], projector, has_cls=False)
        with captured_calls(tower.attention.qkv_proj, projector) as (qkv, projected):
            yield Idefics3Pass(tower, qkv, projected, int(self.config.scale_factor))


@MULTIMODAL_REGISTRY.register_processor(
    PrunedIdefics3Processor, info=SmolVLMProcessingInfo, dummy_inputs=Idefics3DummyInputsBuilder
)
class PrunedSmolVLM(PrunedIdefics3):
    """vLLM's SmolVLM: the same model with another processor."""


class Idefics3Pass(PatchPass):
    """One run of a tower whose projector reads patches in blocks, ``block`` wide and high."""

    def __init__(self, tower: Tower, qkv: Call, projector: Call, block: int) -> None:
        super().__init__(tower, qkv, [])
        self._projector, self._block = projector, block

    def signals(self) -> dict[str, Callable[[], Tensor]]:
        return {
            "vision_attention": lambda: block_means(self.vision_attention()[..., None], self._block)[..., 0],
            "vision_keys": lambda: block_means(self.vision_keys(), self._block),
            "encoder_features": lambda: self._projector.input,
            "tiles": lambda: tile_numbers(self._projector.input),
        }
