"""Prune Qwen2-VL, Qwen2.5-VL and Qwen3-VL in vLLM. Kept tokens keep their own 3-D positions.

vLLM computes the positions of a prompt before it encodes the pictures. So the coordinates of kept tokens are stored
with them in vLLM's cache of encoded pictures, and are added to the positions right before the language model reads the
tokens: by :mod:`vllm_tops.qwen_state` in vLLM's second model runner, by :meth:`PrunedQwen.forward` in its first one.

Videos are not pruned.
"""

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from vllm.config import set_current_vllm_config
from vllm.model_executor.models.qwen2_5_vl import (
    Qwen2_5_VLDummyInputsBuilder,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLMultiModalProcessor,
    Qwen2_5_VLProcessingInfo,
)
from vllm.model_executor.models.qwen2_vl import (
    Qwen2VLDummyInputsBuilder,
    Qwen2VLForConditionalGeneration,
    Qwen2VLMultiModalProcessor,
    Qwen2VLProcessingInfo,
)
from vllm.model_executor.models.qwen3_vl import (
    Qwen3VLDummyInputsBuilder,
    Qwen3VLForConditionalGeneration,
    Qwen3VLMultiModalProcessor,
    Qwen3VLProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.processing import BaseProcessingInfo

from vllm_tops.placeholders import announce_kept
from vllm_tops.qwen_positions import Kept, pack, pruned_positions, unpack
from vllm_tops.qwen_tower import QwenTower
from vllm_tops.requests import KeepPerRequest, announced_tokens, keeps_of
from vllm_tops.tower import PrunedModel


class PrunedInfo(BaseProcessingInfo):
    """Count the kept tokens of a picture."""

    def get_num_image_tokens(self, **picture: Any) -> int:
        return announced_tokens(super().get_num_image_tokens(**picture))


class PrunedProcessor(KeepPerRequest):
    """Announce the kept tokens of a picture."""

    def _get_prompt_updates(self, mm_items: Any, **processed: Any) -> Sequence[Any]:
        updates = super()._get_prompt_updates(mm_items=mm_items, **processed)
        return [announce_kept(update, mm_items) for update in updates]


class PrunedQwen(PrunedModel):
    """Base class of the pruned models: it prunes pictures and gives the kept tokens their positions."""

    config: Any
    visual: Any
    register_buffer: Any
    _coordinates: Tensor

    @staticmethod
    def get_model_state_cls() -> type[Any]:
        """Return the class in which vLLM's second model runner holds a batch's positions."""
        from vllm_tops.qwen_state import KeptPositions

        return KeptPositions

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        roomy = _with_room_for_positions(vllm_config)
        with set_current_vllm_config(roomy):
            super().__init__(vllm_config=roomy, prefix=prefix)
        self.multimodal_config = vllm_config.model_config.multimodal_config
        self.is_multimodal_pruning_enabled = False
        self._adds_in_forward = not vllm_config.use_v2_model_runner
        # Coordinates to add to the positions of the tokens that are read next.
        coordinates = torch.zeros(2, vllm_config.scheduler_config.max_num_batched_tokens, dtype=torch.int64)
        self.register_buffer("_coordinates", coordinates, persistent=False)

    def get_encoder_cudagraph_config(self) -> Any:
        # A CUDA graph would run the tower alone and skip the selection.
        return replace(super().get_encoder_cudagraph_config(), modalities=[])

    def embed_multimodal(self, **kwargs: Any) -> list[Tensor]:
        """Return the kept tokens of each picture, or all tokens of each video, packed with their coordinates.

        Do not change embeddings that the request contains.
        """
        keeps = keeps_of(kwargs)
        grids: Any = kwargs.get("image_grid_thw")
        if kwargs.get("pixel_values") is None:
            features = super().embed_multimodal(**kwargs) or []
            chosen = [torch.arange(len(tokens)) for tokens in features]
        else:
            with QwenTower(self.visual).listening(grids.tolist()) as seen:
                features = super().embed_multimodal(**kwargs)
            features, chosen = seen.prune(features, keeps)
        if grids is None:  # videos: vLLM has computed their positions
            return [pack(tokens, *torch.zeros(2, len(tokens), dtype=torch.int64)) for tokens in features]
        sides = (grids[:, 2] // self.config.vision_config.spatial_merge_size).tolist()
        return [
            pack(tokens, indices // side, indices % side)
            for tokens, indices, side in zip(features, chosen, sides, strict=True)
        ]

    def get_mrope_input_positions(self, input_tokens: list[int], mm_features: list[Any]) -> tuple[Tensor, int]:
        """Return the positions of text and the start position of each picture, as vLLM computes them unpruned."""
        tokens: list[int] = []
        features, pictures, read = [], [], 0
        for feature in sorted(mm_features, key=lambda feature: feature.mm_position.offset):
            place = feature.mm_position
            tokens += input_tokens[read : place.offset]
            read = place.offset
            features.append(replace(feature, mm_position=replace(place, offset=len(tokens))))
            if feature.modality == "image":
                patches = int(feature.data["image_grid_thw"].data.prod())
                picture = Kept(len(tokens), patches // self.config.vision_config.spatial_merge_size**2, place.length)
                tokens += [self.config.image_token_id] * picture.num_tokens
                read += picture.num_kept
                pictures.append(picture)
        tokens += input_tokens[read:]
        positions, _ = super().get_mrope_input_positions(tokens, features)
        # A prompt of a thousand pictures, each one line of patches with few kept tokens, could exceed vLLM's last
        # position, which is four times the model's.
        last = 3 * self.config.get_text_config().max_position_embeddings
        return pruned_positions(positions.clamp(max=last), pictures)

    def embed_input_ids(
        self,
        input_ids: Tensor,
        multimodal_embeddings: Sequence[Tensor] | None = None,
        *,
        is_multimodal: Tensor | None = None,
    ) -> Tensor:
        """Move the coordinates from the tokens to the buffer that :meth:`forward` reads, then embed as vLLM does."""
        if multimodal_embeddings:
            unpacked = [self._unpack(packed) for packed in multimodal_embeddings]
            multimodal_embeddings = [tokens for tokens, _ in unpacked]
            coordinates = torch.cat([coordinates for _, coordinates in unpacked], dim=1)
            read_next = self._coordinates[:, : len(input_ids)]
            read_next.zero_()
            read_next[:, is_multimodal] = coordinates
        embeddings: Tensor = super().embed_input_ids(input_ids, multimodal_embeddings, is_multimodal=is_multimodal)
        return embeddings

    def _unpack(self, packed: Tensor) -> tuple[Tensor, Tensor]:
        if packed.shape[1] != self.config.get_text_config().hidden_size:
            return unpack(packed)
        # Embeddings of text that the request contains.
        return packed, torch.zeros(2, len(packed), dtype=torch.int64, device=packed.device)

    def add_coordinates(self, positions: Tensor) -> None:
        """Add the coordinates of the kept tokens that are read next to their positions ``[3, n]``, in place.

        vLLM fills the positions again for each step.
        """
        read_now = self._coordinates[:, : positions.shape[-1]]
        positions[1:, : read_now.shape[1]] += read_now
        read_now.zero_()

    def forward(self, input_ids: Tensor | None, positions: Tensor, *inputs: Any, **kwargs: Any) -> Any:
        """Run vLLM's forward pass; the first model runner has no other place where positions can be changed."""
        if self._adds_in_forward:
            self.add_coordinates(positions)
        return super().forward(input_ids, positions, *inputs, **kwargs)


class PrunedQwen2VLInfo(PrunedInfo, Qwen2VLProcessingInfo): ...


class PrunedQwen2VLProcessor(PrunedProcessor, Qwen2VLMultiModalProcessor): ...


@MULTIMODAL_REGISTRY.register_processor(
    PrunedQwen2VLProcessor, info=PrunedQwen2VLInfo, dummy_inputs=Qwen2VLDummyInputsBuilder
)
class PrunedQwen2VL(PrunedQwen, Qwen2VLForConditionalGeneration):
    """vLLM's Qwen2-VL with only the kept tokens of each picture."""


class PrunedQwen25VLInfo(PrunedInfo, Qwen2_5_VLProcessingInfo): ...


class PrunedQwen25VLProcessor(PrunedProcessor, Qwen2_5_VLMultiModalProcessor): ...


@MULTIMODAL_REGISTRY.register_processor(
    PrunedQwen25VLProcessor, info=PrunedQwen25VLInfo, dummy_inputs=Qwen2_5_VLDummyInputsBuilder
)
class PrunedQwen25VL(PrunedQwen, Qwen2_5_VLForConditionalGeneration):
    """vLLM's Qwen2.5-VL with only the kept tokens of each picture."""


class PrunedQwen3VLInfo(PrunedInfo, Qwen3VLProcessingInfo): ...


class PrunedQwen3VLProcessor(PrunedProcessor, Qwen3VLMultiModalProcessor): ...


@MULTIMODAL_REGISTRY.register_processor(
    PrunedQwen3VLProcessor, info=PrunedQwen3VLInfo, dummy_inputs=Qwen3VLDummyInputsBuilder
)
class PrunedQwen3VL(PrunedQwen, Qwen3VLForConditionalGeneration):
    """vLLM's Qwen3-VL with only the kept tokens of each picture, also in the features that deepstack adds."""


def _with_room_for_positions(vllm_config: Any) -> Any:
    """Return a copy of the configuration with which vLLM builds a table for positions of dropped tokens.

    vLLM builds this table for its own pruning of videos, which is refused here. Only the construction of the model sees
    the copy. vLLM's compiled code is cached by it, apart from code for a smaller table.
    """
    roomy = copy.copy(vllm_config)
    roomy.model_config = copy.copy(vllm_config.model_config)
    roomy.model_config.multimodal_config = copy.copy(vllm_config.model_config.multimodal_config)
    roomy.model_config.multimodal_config.video_pruning_rate = 0.5
    return roomy
