"""Prune LLaVA-OneVision in vLLM. Pictures are as in LLaVA-NeXT, but scaled down if they have too many tokens.

The frames of a video are pooled, and a newline token stands after the last one.
"""

import math
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from vllm.model_executor.models.llava_onevision import (
    LlavaOnevisionDummyInputsBuilder,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionMultiModalProcessor,
    LlavaOnevisionProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY

from tops_engine.families.parts.onevision_tiles import pack_numbers
from tops_engine.families.parts.pooled_frames import PooledFrames
from vllm_tops.llavas import CountsKept, PrunedTiles
from vllm_tops.requests import KeepPerRequest, announced_tokens, keeps_of


class PrunedLlavaOnevisionInfo(CountsKept, LlavaOnevisionProcessingInfo):
    """Announce the kept tokens of a picture and of a video."""

    def get_num_video_tokens(self, *, image_width: int, image_height: int, num_frames: int) -> int:
        num_tokens = super().get_num_video_tokens(
            image_width=image_width, image_height=image_height, num_frames=num_frames
        )
        return announced_tokens(num_tokens)

    def get_num_frames_with_most_features(self, seq_len: int, mm_counts: Mapping[str, int]) -> int:
        # vLLM adds frames until they exceed the context, which a budget in tokens never does.
        return LlavaOnevisionProcessingInfo(self.ctx).get_num_frames_with_most_features(seq_len, mm_counts)


class PrunedLlavaOnevisionProcessor(KeepPerRequest, LlavaOnevisionMultiModalProcessor): ...


@MULTIMODAL_REGISTRY.register_processor(
    PrunedLlavaOnevisionProcessor, info=PrunedLlavaOnevisionInfo, dummy_inputs=LlavaOnevisionDummyInputsBuilder
)
class PrunedLlavaOnevision(PrunedTiles, LlavaOnevisionForConditionalGeneration):
    """vLLM's LLaVA-OneVision with only the kept tokens of each picture and video."""

    def embed_multimodal(self, **kwargs: Any) -> Any:
        """Return the kept tokens of each picture and video; do not change embeddings that the request contains."""
        videos = kwargs.get("pixel_values_videos")
        if videos is None:
            return super().embed_multimodal(**kwargs)
        keeps = keeps_of(kwargs)
        with self._tower.listening() as seen:
            features = super().embed_multimodal(**kwargs)
        pooled = PooledFrames((math.ceil(self._side / 2),) * 2, self.apply_pooling, newlines="one_token")
        num_frames = [len(video) for video in videos]

        def arrange(values: Tensor, number: int) -> Tensor:
            return pooled.arrange(torch.split(values, num_frames)[number], values.new_zeros(values.shape[-1]))

        layouts = [pooled.layout_of(frames) for frames in num_frames]
        # vLLM returns videos of different lengths as [1, n, d].
        return seen.prune([tokens.flatten(0, -2) for tokens in features], layouts, arrange, keeps)

    def _pack(self, tiles: Tensor, size: Tensor, newline: Tensor) -> Tensor:
        if not tiles.is_floating_point():
            return pack_numbers(tiles, lambda shares, newline: self._pack(shares, size, newline))
        model: Any = SimpleNamespace(config=self.config)
        pack = LlavaOnevisionForConditionalGeneration._merge_image_patch_embeddings
        return pack(model, size, tiles, image_newline=newline, strategy="spatial_unpad")
