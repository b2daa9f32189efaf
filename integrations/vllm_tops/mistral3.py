"""Prune Mistral 3 in vLLM. A picture has any size; the text token after each row of its tokens is always kept."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers.models.pixtral.modeling_pixtral import apply_rotary_pos_emb
from vllm.model_executor.models.mistral3 import (
    Mistral3DummyInputsBuilder,
    Mistral3ForConditionalGeneration,
    Mistral3MultiModalProcessor,
    Mistral3ProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY

from tops_engine.families.parts.tile_grid import block_means
from tops_engine.families.parts.vision_signals import Call, captured_calls, patch_attention
from tops_engine.media.layout import VisualLayout, grid_boxes
from vllm_tops.picture_text import TEXT, AnnouncesText, kept_among_text
from vllm_tops.requests import keeps_of
from vllm_tops.tower import Pass, PrunedModel, over_ranks


class PrunedMistral3Processor(AnnouncesText, Mistral3MultiModalProcessor): ...


@MULTIMODAL_REGISTRY.register_processor(
    PrunedMistral3Processor, info=Mistral3ProcessingInfo, dummy_inputs=Mistral3DummyInputsBuilder
)
class PrunedMistral3(PrunedModel, Mistral3ForConditionalGeneration):
    """vLLM's Mistral 3 with only the kept tokens of each picture."""

    def embed_multimodal(self, **kwargs: Any) -> Any:
        """Return the kept tokens of each picture and the text after its rows, in their order: ``[k, d]``."""
        keeps = keeps_of(kwargs)
        if kwargs.get("pixel_values") is None:
            return super().embed_multimodal(**kwargs)
        patch = self.config.vision_config.patch_size
        patches = [(pixels.shape[-2] // patch, pixels.shape[-1] // patch) for pixels in kwargs["pixel_values"]]
        with self._listening(patches) as seen:
            features = super().embed_multimodal(**kwargs)
        layouts = [
            VisualLayout(grid_boxes(*grid), torch.zeros(grid[0] * grid[1]).long(), (grid,)) for grid in seen.grids
        ]
        images = seen.images(features, layouts, seen.of_picture)
        return kept_among_text(
            kwargs[TEXT], self.config.image_token_index, images, keeps, self.language_model.embed_input_ids
        )

    @contextmanager
    def _listening(self, patches: list[tuple[int, int]]) -> Iterator["MistralPass"]:
        tower = self.vision_tower
        merging = self.multi_modal_projector.patch_merger.merging_layer
        # vLLM may compile the layers, so their calls cannot be captured.
        projection = tower.transformer.layers[-1].attention.qkv_proj
        with captured_calls(tower.patch_positional_embedding, projection, merging) as calls:
            yield MistralPass(self, patches, *calls)


class MistralPass(Pass):
    """One run of a Pixtral tower on pictures of (rows, columns) patches, one after another: ``[1, tokens, ...]``."""

    def __init__(
        self, model: PrunedMistral3, patches: list[tuple[int, int]], rotary: Call, qkv: Call, merging: Call
    ) -> None:
        super().__init__(self._project)
        self._projector = model.multi_modal_projector
        self._attention = model.vision_tower.transformer.layers[-1].attention
        self._block = int(model.config.spatial_merge_size)
        self._patches, self._rotary, self._qkv, self._merging = patches, rotary, qkv, merging

    @property
    def grids(self) -> list[tuple[int, int]]:
        """Rows and columns of each picture's tokens."""
        return [(rows // self._block, columns // self._block) for rows, columns in self._patches]

    def of_picture(self, values: Tensor, number: int) -> Tensor:
        """Return the values of one picture: ``[1, tokens, c]`` to ``[n, c]``."""
        return torch.split(values[0], [rows * columns for rows, columns in self.grids])[number]

    def signals(self) -> dict[str, Callable[[], Tensor]]:
        return {
            "vision_attention": self.vision_attention,
            "vision_keys": self.vision_keys,
            "encoder_features": lambda: self._merging.input[None],
            "tiles": lambda: torch.ones(self._merging.input.shape[:1], dtype=torch.int64)[None],
        }

    def vision_attention(self) -> Tensor:
        attention = self._attention
        queries, keys, _ = self._qkv.output[0].chunk(3, dim=-1)
        heads = (part.view(1, part.shape[1], -1, attention.head_dim).transpose(1, 2) for part in (queries, keys))
        rotated = apply_rotary_pos_emb(*heads, *self._rotary.output, unsqueeze_dim=0)
        queries, keys = (part.transpose(1, 2).flatten(2) for part in rotated)
        scale = attention.head_dim**-0.5
        received = torch.cat(
            [
                self._of_tokens(patch_attention(*pair, attention.n_heads, scale, has_cls=False)[..., None], number)
                for number, pair in enumerate(zip(self._split(queries), self._split(keys), strict=True))
            ],
            dim=1,
        )
        return over_ranks(attention.tp_size, received)[..., 0]

    def vision_keys(self) -> Tensor:
        keys = self._qkv.output[0].chunk(3, dim=-1)[1].float()
        means = keys.reshape(*keys.shape[:2], self._attention.n_heads, -1).mean(dim=2)
        of_tokens = [self._of_tokens(part, number) for number, part in enumerate(self._split(means))]
        return over_ranks(self._attention.tp_size, torch.cat(of_tokens, dim=1))

    def _split(self, values: Tensor) -> tuple[Tensor, ...]:
        """Return the values of the patches of each picture, ``[1, patches, c]``."""
        return torch.split(values, [rows * columns for rows, columns in self._patches], dim=1)

    def _of_tokens(self, values: Tensor, number: int) -> Tensor:
        return block_means(values, self._block, self._patches[number])

    def _project(self, rows: Tensor) -> Tensor:
        projector = self._projector
        projected: Tensor = projector.linear_2(
            projector.act(projector.linear_1(projector.patch_merger.merging_layer(rows))[0])
        )[0]
        return projected
