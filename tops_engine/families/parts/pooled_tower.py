"""The vision tower of Gemma 4: pictures in their own proportions, and a token for each block of k x k patches."""

import itertools
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tops_engine.families.parts.vision_signals import Call, patch_attention
from tops_engine.families.parts.vision_tower import Signals, middle_layer, shallow_layer


@dataclass(frozen=True)
class PooledVisionShape:
    """Sizes of the tower, its pooling and the projector behind it.

    Attributes
    ----------
    attention_size : heads times their size.
    patch_values : colour values of a patch.
    patches_per_token : patches that are averaged.
    text_hidden_size : width of a projected token.
    """

    num_layers: int
    hidden_size: int
    intermediate_size: int
    attention_size: int
    patch_values: int
    patches_per_token: int
    text_hidden_size: int

    @classmethod
    def from_config(cls, vision: Any, text_hidden_size: int) -> "PooledVisionShape":
        return cls(
            num_layers=vision.num_hidden_layers,
            hidden_size=vision.hidden_size,
            intermediate_size=vision.intermediate_size,
            attention_size=vision.num_attention_heads * vision.head_dim,
            patch_values=3 * vision.patch_size**2,
            patches_per_token=vision.pooling_kernel_size**2,
            text_hidden_size=text_hidden_size,
        )

    def flops(self, num_pictures: int, num_patches: int, num_tokens: int) -> int:
        """Encoding, pooling and projecting.

        Parameters
        ----------
        num_pictures : pictures and frames, each padded to ``num_patches`` patches.
        num_tokens : of all of them, without padding.
        """
        width = self.hidden_size
        embedding = 2 * num_patches * self.patch_values * width
        projections = 2 * num_patches * width * (4 * self.attention_size + 3 * self.intermediate_size)
        layer = projections + 2 * 2 * num_patches**2 * self.attention_size
        # The mean of the patches of each token is a product with a matrix of weights.
        pooling = 2 * num_patches * (num_patches // self.patches_per_token) * width
        projector = 2 * num_tokens * width * self.text_hidden_size
        return num_pictures * (embedding + self.num_layers * layer + pooling) + projector


class PooledTower:
    """Read the signals of the tower. It has no [CLS]: relevance is the mean attention that a patch receives in the last
    layer, averaged over the patches of a token. Keys are averaged in the same way.

    All values have the shape [1, tokens, c]: the projector sees the tokens of all pictures and frames in one row.

    Parameters
    ----------
    visual : the tower, ``model.model.vision_tower``.
    projector : the module behind the pooling.
    """

    def __init__(self, visual: Any, projector: nn.Module) -> None:
        layers = visual.encoder.layers
        self.attention = layers[-1].self_attn
        self.middle_attention = layers[middle_layer(len(layers))].self_attn
        self.shallow_attention = layers[shallow_layer(len(layers))].self_attn
        self.projector = projector
        self.block: int = visual.config.pooling_kernel_size
        self.num_heads: int = visual.config.num_attention_heads
        self._rotate = sys.modules[type(visual).__module__].apply_multidimensional_rope

    def taps(self) -> Sequence[nn.Module]:
        attentions = self.attention, self.middle_attention, self.shallow_attention
        norms = itertools.chain(*((attention.q_norm, attention.k_norm) for attention in attentions))
        return self.attention, *norms, self.projector

    def signals(self, taps: Sequence[Call]) -> Signals:
        layer, queries, keys, middle_queries, middle_keys, shallow_queries, shallow_keys, pooled = taps

        def picture_numbers() -> Tensor:
            lengths = self._lengths(layer) // self.block**2
            return torch.arange(1, len(lengths) + 1, device=lengths.device).repeat_interleave(lengths)[None]

        return {
            "encoder_features": lambda: pooled.input[None],
            "tiles": picture_numbers,
            "vision_attention": lambda: self._received(layer, queries, keys, self.num_heads),
            "received_attention": lambda: self._received(layer, queries, keys, self.num_heads),
            "middle_attention": lambda: self._received(layer, middle_queries, middle_keys, self.num_heads),
            "shallow_attention": lambda: self._received(layer, shallow_queries, shallow_keys, self.num_heads),
            "vision_keys": lambda: self._means(layer, keys.output.float().mean(dim=2)),
            "last_layer_attention": lambda: self._received(layer, queries, keys, 1),
            "last_layer_keys": lambda: self._means(layer, keys.output.float().flatten(2)),
        }

    def _received(self, layer: Call, queries: Call, keys: Call, num_heads: int) -> Tensor:
        """Return the mean attention that the patches of each token receive from their picture: float32 [1, tokens]."""
        cos, sin = layer.keywords["position_embeddings"]
        positions, lengths = layer.keywords["position_ids"], self._lengths(layer).tolist()
        rotated = [self._rotate(call.output, cos, sin, positions).flatten(2) for call in (queries, keys)]
        # The norms of queries and keys stand for the scale. One head over all values has the mean of theirs.
        scale = self.attention.scaling * (num_heads / self.num_heads) ** 0.5
        received = torch.zeros(positions.shape[:2], device=positions.device)
        for picture, length in enumerate(lengths):
            query, key = (values[picture : picture + 1, :length] for values in rotated)
            received[picture, :length] = patch_attention(query, key, num_heads, scale, has_cls=False)[0]
        return self._means(layer, received[..., None])[..., 0]

    def _means(self, layer: Call, patches: Tensor) -> Tensor:
        """Average over the patches of each token: [pictures, patches, c] -> [1, tokens, c]."""
        tokens = []
        for values, (rows, columns) in zip(
            patches, token_grids(layer.keywords["position_ids"], self.block), strict=True
        ):
            blocks = values[: rows * columns * self.block**2].view(rows, self.block, columns, self.block, -1)
            tokens.append(blocks.mean(dim=(1, 3)).flatten(0, 1))
        return torch.cat(tokens)[None]

    def _lengths(self, layer: Call) -> Tensor:
        """Return the patches of each picture without padding, which has the position -1: int64 [pictures]."""
        lengths: Tensor = (layer.keywords["position_ids"] >= 0).all(dim=-1).sum(dim=1)
        return lengths


def token_grids(positions: Tensor, block: int) -> list[tuple[int, int]]:
    """Return rows and columns of the tokens of each picture.

    Parameters
    ----------
    positions : int64 [pictures, patches, 2], column and row of each patch; -1 for padding.
    block : patches along a side of a token.
    """
    sizes = (positions.amax(dim=1) + 1) // block
    return [(rows, columns) for columns, rows in sizes.tolist()]
