"""Prune InternVL3 and 3.5 in vLLM.

A picture is tiles and a thumbnail, each one grid of tokens, between two text tokens. Each frame of a video is one such
grid, with text before and after it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from vllm.model_executor.models.interns1 import (
    InternS1DummyInputsBuilder,
    InternS1ForConditionalGeneration,
    InternS1MultiModalProcessor,
    InternS1ProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.inputs import MultiModalFieldConfig, MultiModalKwargsItems
from vllm.multimodal.parse import ImageProcessorItems, ImageSize

from tops_engine.errors import InvalidInput
from tops_engine.families.internvl import tile_grid
from tops_engine.families.parts.tile_grid import block_means, tiled_layout
from tops_engine.families.parts.vision_signals import Call, captured_calls, patch_attention
from tops_engine.media.layout import frame_layout, grid_boxes
from tops_engine.methods import Selection, VisualTokens
from vllm_tops.placeholders import among_text, announce_kept, remaining
from vllm_tops.requests import KeepPerRequest, announced_tokens, keeps_of
from vllm_tops.tower import Pass, PrunedModel, kept_features, select, tile_numbers


class InternVLInfo(InternS1ProcessingInfo):
    """Count the tokens of pictures cut into tiles, the processor's default whatever the checkpoint's files say."""

    def get_num_image_tokens(self, *, mm_kwargs: Mapping[str, object], **picture: Any) -> int:
        return super().get_num_image_tokens(mm_kwargs={"crop_to_patches": True, **mm_kwargs}, **picture)


class PrunedInternVLInfo(InternVLInfo):
    """Count the kept tokens of a picture."""

    def get_num_image_tokens(self, **picture: Any) -> int:
        return announced_tokens(super().get_num_image_tokens(**picture))

    def get_image_size_with_most_features(self) -> ImageSize:
        # With a budget in tokens, all pictures keep the same number; the largest unpruned one needs the most memory.
        return InternVLInfo(self.ctx).get_image_size_with_most_features()


class PrunedInternVLProcessor(KeepPerRequest, InternS1MultiModalProcessor):
    """Announce the kept tokens, and tell the model how a picture was cut and what text is between a video's frames."""

    def _apply_hf_processor_main(self, mm_items: Any, hf_kwargs: Mapping[str, object]) -> Any:
        processed = super()._apply_hf_processor_main(mm_items, hf_kwargs)
        if "video_num_patches" in processed:
            fields = super()._get_mm_fields_config(processed, hf_kwargs)
            read = MultiModalKwargsItems.from_hf_inputs(processed, fields)
            updates = super()._get_prompt_updates(mm_items, hf_kwargs, read)
            (videos,) = [update for update in updates if update.modality == "video"]
            numbers = range(len(processed["video_num_patches"]))
            processed["video_text"] = [torch.tensor(videos.resolve(number).content.full) for number in numbers]
        if "image_num_patches" in processed:
            images = mm_items.get_items("image", ImageProcessorItems)
            sizes = [images.get_image_size(number) for number in range(len(images))]
            grids = torch.tensor([self._grid(size, hf_kwargs) for size in sizes])
            _require_grids(grids, processed["image_num_patches"])
            processed["image_grids"] = grids
        return processed

    def _grid(self, size: ImageSize, hf_kwargs: Mapping[str, object]) -> tuple[int, int]:
        """Return rows and columns of the picture's tiles; (0, 0) if the picture is not cut."""
        given: Mapping[str, Any] = self.info.ctx.get_merged_mm_kwargs(hf_kwargs)
        given = {"crop_to_patches": True, **given, **given.get("images_kwargs", {})}
        if not given["crop_to_patches"]:
            return 0, 0
        images = self.info.get_hf_processor().image_processor
        fewest, most = given.get("min_patches", images.min_patches), given.get("max_patches", images.max_patches)
        return tile_grid(size.height, size.width, images.size, fewest, most)

    def _get_mm_fields_config(self, hf_inputs: Any, hf_processor_mm_kwargs: Mapping[str, object]) -> Mapping[str, Any]:
        fields = super()._get_mm_fields_config(hf_inputs, hf_processor_mm_kwargs)
        return {
            **fields,
            "image_grids": MultiModalFieldConfig.batched("image", keep_on_cpu=True),
            "video_text": MultiModalFieldConfig.batched("video"),
        }

    def _get_prompt_updates(self, mm_items: Any, **processed: Any) -> Sequence[Any]:
        updates = super()._get_prompt_updates(mm_items=mm_items, **processed)
        return [announce_kept(update, mm_items) for update in updates]


def _require_grids(grids: Tensor, num_tiles: Tensor) -> None:
    """Refuse a request whose options cut pictures into other tiles than :func:`tile_grid` computes.

    Raises:
        InvalidInput: If a grid and its thumbnail have another number of tiles than the picture has.
    """
    if not torch.equal(grids.prod(dim=1) + 1, num_tiles):
        raise InvalidInput(
            "TOPS supports min_patches, max_patches and crop_to_patches of InternVL's image processor; remove the "
            "other options of the processor."
        )


@MULTIMODAL_REGISTRY.register_processor(
    PrunedInternVLProcessor, info=PrunedInternVLInfo, dummy_inputs=InternS1DummyInputsBuilder
)
class PrunedInternVL(PrunedModel, InternS1ForConditionalGeneration):
    """vLLM's InternVL with only the kept tokens of each picture and video."""

    def embed_multimodal(self, **kwargs: Any) -> Any:
        """Return the kept tokens of each picture and video; do not change embeddings that the request contains."""
        keeps = keeps_of(kwargs)
        is_video = kwargs.get("pixel_values_videos") is not None
        if kwargs.get("pixel_values") is None and not is_video:
            return super().embed_multimodal(**kwargs)
        with self._listening() as seen:
            features = super().embed_multimodal(**kwargs)
        side = round(self.num_image_token**0.5)
        if is_video:
            frames = grid_boxes(side, side), (side, side)
            layouts = [frame_layout(count, *frames) for count in kwargs["video_num_patches"].tolist()]
        else:
            layouts = [tiled_layout(rows, columns, side) for rows, columns in kwargs["image_grids"].tolist()]
        ends = torch.tensor([layout.num_tokens for layout in layouts]).cumsum(0).tolist()

        def arrange(values: Tensor, number: int) -> Tensor:
            return values.flatten(0, 1)[ends[number] - layouts[number].num_tokens : ends[number]]

        if not is_video:
            return seen.prune(features, layouts, arrange, keeps)
        videos = seen.images(features, layouts, arrange)
        return [
            self._among_text(ids, video, selection)
            for ids, video, selection in zip(kwargs["video_text"], videos, select(videos, keeps), strict=True)
        ]

    def _among_text(self, ids: Tensor, video: VisualTokens, selection: Selection) -> Tensor:
        """Join embeddings of the text between frames, which ``ids`` contains, and the kept tokens: ``[n, d]``."""
        token = self.video_context_token_id
        stays = remaining(ids, token, selection.indices)
        return among_text(ids[stays], token, kept_features(video, selection), self.language_model.embed_input_ids)

    @contextmanager
    def _listening(self) -> Iterator["InternVLPass"]:
        attention = self.vision_tower.encoder.layer[-1].attention
        projections = (
            (attention.q_norm, attention.k_norm) if attention.qk_normalization else (attention.q_proj, attention.k_proj)
        )
        with captured_calls(*projections, self.multi_modal_projector) as calls:
            yield InternVLPass(self, *calls)


class InternVLPass(Pass):
    """One run of an InternViT, whose last layer feeds the projector; each rank has all heads."""

    def __init__(self, model: PrunedInternVL, queries: Call, keys: Call, projector: Call) -> None:
        super().__init__(model.multi_modal_projector)
        self._attention = model.vision_tower.encoder.layer[-1].attention
        self._block = round(1 / model.downsample_ratio)
        self._queries, self._keys, self._projector = queries, keys, projector

    def signals(self) -> dict[str, Callable[[], Tensor]]:
        return {
            "vision_attention": self.vision_attention,
            "vision_keys": self.vision_keys,
            "encoder_features": lambda: self._projector.input,
            "tiles": lambda: tile_numbers(self._projector.input),
        }

    def vision_attention(self) -> Tensor:
        heads, scale = self._attention.num_heads, self._attention.scale
        patches = patch_attention(self._queries.output, self._keys.output, heads, scale, has_cls=True)
        return block_means(patches[..., None], self._block)[..., 0]

    def vision_keys(self) -> Tensor:
        keys = self._keys.output[:, 1:].float()
        heads = keys.reshape(*keys.shape[:2], self._attention.num_heads, -1)
        return block_means(heads.mean(dim=2), self._block)
