"""LLaVA-NeXT in vLLM, pruned: an overview and tiles, with a newline token after each row of patches."""

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from vllm.model_executor.models.llava import LlavaDummyInputsBuilder
from vllm.model_executor.models.llava_next import (
    LlavaNextForConditionalGeneration,
    LlavaNextMultiModalProcessor,
    LlavaNextProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.parse import ImageSize

from tops_engine.budget import Keep
from tops_engine.layout import newline_layout
from vllm_tops.requests import KeepPerRequest, announced_tokens, keeps_of
from vllm_tops.tower import Pass, llava_tower, require_plain_tower

#: Brings values of one picture's patches into the order of its tokens: [tiles, patches, c], the picture's height and
#: width, and what a newline token gets, [c], to [n, c].
Pack = Callable[[Tensor, Tensor, Tensor], Tensor]


def prune_tiled(
    seen: Pass,
    features: Sequence[Tensor],
    num_tiles: Sequence[int],
    sizes: Tensor,
    side: int,
    pack: Pack,
    keeps: Sequence[Keep],
) -> list[Tensor]:
    """What remains of pictures that are an overview of ``side`` x ``side`` patches and tiles with newline tokens."""

    def arrange(values: Tensor, number: int) -> Tensor:
        tiles = torch.split(values, list(num_tiles))[number]
        return pack(tiles, sizes[number], values.new_zeros(values.shape[-1]))

    base = side**2
    newlines = [
        pack(torch.zeros(count, base, 1), size, torch.ones(1))[base:, 0] == 1
        for count, size in zip(num_tiles, sizes, strict=True)
    ]
    return seen.prune(features, [newline_layout(side, ends) for ends in newlines], arrange, keeps)


class PrunedLlavaNextInfo(LlavaNextProcessingInfo):
    """Announces the tokens that will remain of a picture."""

    def get_num_image_tokens(self, *, image_width: int, image_height: int) -> int:
        require_plain_tower(self.get_hf_config())
        all_tokens = super().get_num_image_tokens(image_width=image_width, image_height=image_height)
        return announced_tokens(all_tokens)

    def get_image_size_with_most_features(self) -> ImageSize:
        # A fixed number of tokens stays of every picture; the one with most of them before is what needs most memory.
        return LlavaNextProcessingInfo(self.ctx).get_image_size_with_most_features()


class PrunedLlavaNextProcessor(KeepPerRequest, LlavaNextMultiModalProcessor): ...


@MULTIMODAL_REGISTRY.register_processor(
    PrunedLlavaNextProcessor, info=PrunedLlavaNextInfo, dummy_inputs=LlavaDummyInputsBuilder
)
class PrunedLlavaNext(LlavaNextForConditionalGeneration):
    """vLLM's LLaVA-NeXT, with the chosen tokens of each picture in the place of all."""

    # vLLM would count the rows of adapters in the tower by the tokens that remain.
    supports_tower_connector_lora = False

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        self._tower = llava_tower(self)

    def embed_multimodal(self, **kwargs: Any) -> Any:
        """The remaining tokens of each picture; embeddings that a request brings along stay as they are."""
        keeps = keeps_of(kwargs)
        pixel_values, image_sizes = kwargs.get("pixel_values"), kwargs.get("image_sizes")
        if pixel_values is None or image_sizes is None:
            return super().embed_multimodal(**kwargs)
        with self._tower.listening() as seen:
            features = super().embed_multimodal(**kwargs)
        side = self.config.vision_config.image_size // self.config.vision_config.patch_size
        num_tiles = [len(tiles) for tiles in pixel_values]
        return prune_tiled(seen, features, num_tiles, image_sizes, side, self._pack, keeps)

    def _pack(self, tiles: Tensor, size: Tensor, newline: Tensor) -> Tensor:
        """Values of patches the way vLLM packs their tokens, with another newline: [tiles, patches, c] to [n, c]."""
        model: Any = SimpleNamespace(config=self.config, image_newline=newline)
        pack = LlavaNextForConditionalGeneration._merge_image_patch_embeddings
        return pack(model, size, tiles, strategy="spatial_unpad")
