"""Base classes of the pruned LLaVA models; each model lists them before vLLM's own class."""

from abc import abstractmethod
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from vllm.multimodal.processing import BaseProcessingInfo

from tops_engine.media.layout import newline_layout
from vllm_tops.requests import announced_tokens, keeps_of
from vllm_tops.tower import PrunedModel, Tower, llava_tower


class CountsKept(BaseProcessingInfo):
    """Announce the kept tokens of a picture."""

    def get_num_image_tokens(self, *, image_width: int, image_height: int) -> int:
        return announced_tokens(super().get_num_image_tokens(image_width=image_width, image_height=image_height))


class WithTower(PrunedModel):
    """A model whose vision tower is captured while it runs."""

    @cached_property
    def _tower(self) -> Tower:
        # Found when the first picture comes: later stages of --pipeline-parallel-size have no tower.
        return llava_tower(self)

    @property
    def _side(self) -> int:
        """The number of patches along a side of a tile."""
        vision = self.config.vision_config
        return int(vision.image_size // vision.patch_size)


class PrunedTiles(WithTower):
    """Pictures that are an overview and tiles, with a newline token after each row of patches of the tiles."""

    def embed_multimodal(self, **kwargs: Any) -> Any:
        """Return the kept tokens of each picture; do not change videos or embeddings that the request contains."""
        keeps = keeps_of(kwargs)
        pixel_values, sizes = kwargs.get("pixel_values"), kwargs.get("image_sizes")
        if pixel_values is None or sizes is None:
            return super().embed_multimodal(**kwargs)
        with self._tower.listening() as seen:
            features = super().embed_multimodal(**kwargs)
        num_tiles = [len(tiles) for tiles in pixel_values]

        def arrange(values: Tensor, number: int) -> Tensor:
            tiles = torch.split(values, num_tiles)[number]
            return self._pack(tiles, sizes[number], values.new_zeros(values.shape[-1]))

        num_patches = self._side**2
        newlines = [
            self._pack(torch.zeros(count, num_patches, 1), size, torch.ones(1))[num_patches:, 0] == 1
            for count, size in zip(num_tiles, sizes, strict=True)
        ]
        return seen.prune(features, [newline_layout(self._side, ends) for ends in newlines], arrange, keeps)

    @abstractmethod
    def _pack(self, tiles: Tensor, size: Tensor, newline: Tensor) -> Tensor:
        """Arrange values of patches in the order in which vLLM packs their tokens.

        Args:
            tiles: ``[tiles, patches, c]`` of one picture.
            size: Height and width of the picture.
            newline: The value of a newline token, ``[c]``.

        Returns:
            ``[n, c]`` in the order of the picture's tokens.
        """
