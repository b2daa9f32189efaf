"""Prune Qwen2-VL, Qwen2.5-VL and Qwen3-VL in vLLM. Kept tokens keep their own 3-D positions.

vLLM computes the positions of a prompt before it encodes pictures and videos. So the coordinates of kept tokens are
stored with them in vLLM's cache of encoded pictures, and are added to the positions right before the language model
reads the tokens: by :mod:`vllm_tops.qwen_state` in vLLM's second model runner, by :meth:`PrunedQwen.forward` in its
first one.

Qwen3-VL has a text with the time before each frame of a video. This text is part of the video in vLLM's cache.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

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

from vllm_tops.placeholders import among_text, announce_kept, remaining
from vllm_tops.qwen_positions import Kept, pack, pruned_positions, unpack
from vllm_tops.qwen_tower import QwenTower
from vllm_tops.qwen_videos import video_alone
from vllm_tops.requests import ARGUMENTS, KeepPerRequest, announced_tokens, keeps_of
from vllm_tops.tower import WithoutTowerGraph


class PrunedInfo(BaseProcessingInfo):
    """Count the kept tokens of a picture or video."""

    def get_num_image_tokens(self, **picture: Any) -> int:
        return announced_tokens(super().get_num_image_tokens(**picture))

    def get_num_video_tokens(self, **video: Any) -> int:
        return announced_tokens(super().get_num_video_tokens(**video))

    def get_num_frames_with_most_features(self, *limits: Any, **named: Any) -> int:
        # vLLM adds frames until they exceed the context, which a budget in tokens never does.
        return int(self.unpruned.get_num_frames_with_most_features(*limits, **named))

    @property
    def unpruned(self) -> Any:
        """vLLM's own class, the last base, which counts all tokens."""
        return type(self).__bases__[-1](self.ctx)


class PrunedProcessor(KeepPerRequest):
    """Announce the kept tokens of a picture or video."""

    def _get_prompt_updates(self, mm_items: Any, **processed: Any) -> Sequence[Any]:
        updates = super()._get_prompt_updates(mm_items=mm_items, **processed)
        return [announce_kept(update, mm_items) for update in updates]


class PrunedQwen(WithoutTowerGraph):
    """Base class of the pruned models: it prunes pictures and videos, and gives the kept tokens their positions.

    Attributes:
        video_times: The names of a video's data that say when its frames are shown.
    """

    video_times: ClassVar[tuple[str, ...]] = ()
    config: Any
    visual: Any
    register_buffer: Any
    _coordinates: Tensor

    @staticmethod
    def get_model_state_cls() -> type[Any]:
        """Return the class in which vLLM's second model runner holds a batch's positions."""
        from vllm_tops.qwen_state import QwenState

        return QwenState

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        roomy = _with_room_for_positions(vllm_config)
        with set_current_vllm_config(roomy):
            super().__init__(vllm_config=roomy, prefix=prefix)
        self.multimodal_config = vllm_config.model_config.multimodal_config
        self.is_multimodal_pruning_enabled = False
        self._adds_in_forward = not vllm_config.use_v2_model_runner
        # Coordinates to add to the positions of the tokens that are read next.
        coordinates = torch.zeros(3, vllm_config.scheduler_config.max_num_batched_tokens, dtype=torch.int64)
        self.register_buffer("_coordinates", coordinates, persistent=False)

    def embed_multimodal(self, **kwargs: Any) -> list[Tensor]:
        """Return the kept tokens of each picture and video, packed with their coordinates.

        Do not change embeddings that the request contains.
        """
        keeps = keeps_of(kwargs)
        are_videos = kwargs.get("pixel_values_videos") is not None
        grids: Any = kwargs.get("video_grid_thw" if are_videos else "image_grid_thw")
        if kwargs.get("pixel_values") is None and not are_videos:
            features = super().embed_multimodal(**kwargs) or []
            chosen = [torch.arange(len(tokens)) for tokens in features]
        else:
            with QwenTower(self.visual).listening(grids.tolist(), are_videos) as seen:
                features = super().embed_multimodal(**kwargs)
            features, chosen = seen.prune(features, keeps)
        if grids is None:  # embeddings of videos: vLLM has computed their positions
            return [pack(tokens, torch.zeros(3, len(tokens), dtype=torch.int64)) for tokens in features]
        if are_videos:
            times = [{name: kwargs[name][number] for name in self.video_times} for number in range(len(grids))]
            return [self._video(*video) for video in zip(grids, times, features, chosen, strict=True)]
        sides = (grids[:, 2] // self.config.vision_config.spatial_merge_size).tolist()
        return [
            pack(tokens, torch.stack([torch.zeros_like(indices), indices // side, indices % side]))
            for tokens, indices, side in zip(features, chosen, sides, strict=True)
        ]

    def _video(self, grid: Tensor, times: dict[str, Any], kept: Tensor, indices: Tensor) -> Tensor:
        """Return the text and the kept tokens of a video, packed with their coordinates."""
        token = self.config.video_token_id
        ids = torch.tensor(self.video_tokens(grid, times))
        positions, _ = super().get_mrope_input_positions(ids.tolist(), [video_alone(grid, times, len(ids))])
        stays = remaining(ids, token, indices)
        embed = self.get_language_model().embed_input_ids
        return pack(among_text(ids[stays].to(kept.device), token, kept, embed), positions[:, stays])

    def video_tokens(self, grid: Tensor, times: Mapping[str, Any]) -> list[int]:
        """Return the tokens of an unpruned video in the prompt, with the text between its frames.

        Args:
            grid: The number of times, rows and columns of patches.
            times: The data of the video that :attr:`video_times` names.
        """
        return [self.config.video_token_id] * (int(grid.prod()) // self.config.vision_config.spatial_merge_size**2)

    def get_mrope_input_positions(self, input_tokens: list[int], mm_features: list[Any]) -> tuple[Tensor, int]:
        """Return the positions of text and the start position of each picture and video, as they are unpruned."""
        tokens: list[int] = []
        features, visuals, read = [], [], 0
        for feature in sorted(mm_features, key=lambda feature: feature.mm_position.offset):
            place = feature.mm_position
            tokens += input_tokens[read : place.offset]
            read = place.offset
            features.append(replace(feature, mm_position=replace(place, offset=len(tokens))))
            unpruned = self._unpruned_tokens(feature)
            if unpruned is not None:
                visuals.append(Kept(len(tokens), len(unpruned), place.length))
                tokens += unpruned
                read += place.length
        tokens += input_tokens[read:]
        positions, _ = super().get_mrope_input_positions(tokens, features)
        # A prompt of a thousand pictures, each one line of patches with few kept tokens, could exceed vLLM's last
        # position, which is four times the model's.
        last = 3 * self.config.get_text_config().max_position_embeddings
        return pruned_positions(positions.clamp(max=last), visuals)

    def _unpruned_tokens(self, feature: Any) -> list[int] | None:
        """Return the tokens of an unpruned picture or video in the prompt; None for embeddings of a video."""
        if feature.modality == "image":
            patches = int(feature.data["image_grid_thw"].data.prod())
            return [self.config.image_token_id] * (patches // self.config.vision_config.spatial_merge_size**2)
        # vLLM leaves pixels out of what it has encoded already.
        if ARGUMENTS["video"] not in feature.data:
            return None
        times = {name: feature.data[name].data for name in self.video_times}
        return self.video_tokens(feature.data["video_grid_thw"].data, times)

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
        return packed, torch.zeros(3, len(packed), dtype=torch.int64, device=packed.device)

    def add_coordinates(self, positions: Tensor) -> None:
        """Add the coordinates of the kept tokens that are read next to their positions ``[3, n]``, in place.

        vLLM fills the positions again for each step.
        """
        read_now = self._coordinates[:, : positions.shape[-1]]
        positions[:, : read_now.shape[1]] += read_now
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
    """vLLM's Qwen2-VL with only the kept tokens of each picture and video."""


class PrunedQwen25VLInfo(PrunedInfo, Qwen2_5_VLProcessingInfo): ...


class PrunedQwen25VLProcessor(PrunedProcessor, Qwen2_5_VLMultiModalProcessor): ...


@MULTIMODAL_REGISTRY.register_processor(
    PrunedQwen25VLProcessor, info=PrunedQwen25VLInfo, dummy_inputs=Qwen2_5_VLDummyInputsBuilder
)
class PrunedQwen25VL(PrunedQwen, Qwen2_5_VLForConditionalGeneration):
    """vLLM's Qwen2.5-VL with only the kept tokens of each picture and video."""

    video_times = ("second_per_grid_ts",)


class PrunedQwen3Info(PrunedInfo):
    """Count the kept tokens of a picture or video."""

    def get_max_video_tokens(self, *limits: Any, **named: Any) -> int:
        # The text between frames is part of a video, and vLLM does not count it.
        return int(self.unpruned.get_max_video_tokens(*limits, **named))


class PrunedQwen3VLInfo(PrunedQwen3Info, Qwen3VLProcessingInfo): ...


class PrunedQwen3VLProcessor(PrunedProcessor, Qwen3VLMultiModalProcessor): ...


class PrunedQwen3(PrunedQwen):
    """Base class of the pruned models that have a text with the time before each frame of a video."""

    video_times = ("timestamps",)

    def video_tokens(self, grid: Tensor, times: Mapping[str, Any]) -> list[int]:
        per_frame = int(grid[1:].prod()) // self.config.vision_config.spatial_merge_size**2
        replacement = Qwen3VLMultiModalProcessor.get_video_repl(
            tokens_per_frame=[per_frame] * int(grid[0]),
            timestamps=times["timestamps"],
            tokenizer=self._tokenizer,
            vision_start_token_id=self.config.vision_start_token_id,
            vision_end_token_id=self.config.vision_end_token_id,
            video_token_id=self.config.video_token_id,
        )
        return list(replacement.full)


@MULTIMODAL_REGISTRY.register_processor(
    PrunedQwen3VLProcessor, info=PrunedQwen3VLInfo, dummy_inputs=Qwen3VLDummyInputsBuilder
)
class PrunedQwen3VL(PrunedQwen3, Qwen3VLForConditionalGeneration):
    """vLLM's Qwen3-VL with only the kept tokens of each picture and video, and what deepstack adds to them."""


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
