"""The vision tower of Pixtral: one picture of any size, and a merger that makes one token of a block of patches."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.pixtral.modeling_pixtral import apply_rotary_pos_emb

from tops_engine.families.parts.tile_grid import block_means
from tops_engine.families.parts.vision_signals import Call, patch_attention
from tops_engine.families.parts.vision_tower import Signals, middle_layer, shallow_layer


@dataclass(frozen=True)
class PixtralShape:
    """Sizes of the tower, whose feed-forward layers are gated, and of merger and projector behind it.

    Attributes
    ----------
    patch_values : colour values of a patch.
    block : patches along a side of the block that becomes one token.
    projector_widths : of a token before, between and after the linear layers.
    """

    num_layers: int
    hidden_size: int
    intermediate_size: int
    patch_values: int
    block: int
    projector_widths: tuple[int, ...]

    @classmethod
    def from_config(cls, config: Any) -> "PixtralShape":
        vision, block, text_width = config.vision_config, config.spatial_merge_size, config.text_config.hidden_size
        width = vision.hidden_size
        return cls(
            num_layers=vision.num_hidden_layers,
            hidden_size=width,
            intermediate_size=vision.intermediate_size,
            patch_values=vision.num_channels * vision.patch_size**2,
            block=block,
            projector_widths=(width * block**2, width, text_width, text_width),
        )

    def flops(self, num_patches: int) -> int:
        """Encoding, merging and projecting one picture."""
        width = self.hidden_size
        layer = 2 * num_patches * width * (4 * width + 3 * self.intermediate_size) + 4 * num_patches**2 * width
        embedding = 2 * num_patches * self.patch_values * width
        projector = sum(2 * a * b for a, b in itertools.pairwise(self.projector_widths))
        return embedding + self.num_layers * layer + num_patches // self.block**2 * projector


class PixtralTower:
    """Read the signals of a run of the tower on one picture.

    The tower has no [CLS]. Relevance is the mean attention that a token's patches receive in the layer that feeds the
    projector. All values have the shape [1, tokens, c].

    Parameters
    ----------
    tower : ``model.model.vision_tower``.
    feature_layer : whose output feeds the projector.
    shape : sizes, for FLOPs.
    """

    def __init__(self, tower: Any, feature_layer: nn.Module, shape: PixtralShape) -> None:
        self.tower = tower
        self.shape = shape
        self.layer: Any = feature_layer
        layers: Any = tower.transformer.layers
        self.last_layer: Any = layers[-1]
        self.middle_layer: Any = layers[middle_layer(len(layers))]
        self.shallow_layer: Any = layers[shallow_layer(len(layers))]

    def taps(self) -> Sequence[nn.Module]:
        layers = self.layer, self.last_layer, self.middle_layer, self.shallow_layer
        attentions = [layer.attention for layer in layers]
        projections = [(attention.q_proj, attention.k_proj) for attention in attentions]
        return self.tower, self.layer, *itertools.chain(*projections)

    def signals(self, taps: Sequence[Call]) -> Signals:
        picture, layer, queries, keys, last_queries, last_keys, middle_queries, middle_keys, *others = taps
        shallow_queries, shallow_keys = others
        num_heads = self.layer.attention.num_heads

        def of_tokens(patches: Tensor) -> Tensor:
            ((height, width),) = picture.keywords["image_sizes"].tolist()
            side = self.tower.patch_size
            return block_means(patches, self.shape.block, (height // side, width // side))

        def received(queries: Call, keys: Call, heads: int) -> Tensor:
            rotated = self._rotated(queries.output, keys.output, layer.keywords["position_embeddings"])
            scale = (queries.output.shape[-1] // heads) ** -0.5
            attention = patch_attention(*rotated, heads, scale, has_cls=False)
            return of_tokens(attention[..., None])[..., 0]

        def head_means() -> Tensor:
            values = keys.output.float()
            return of_tokens(values.reshape(*values.shape[:2], num_heads, -1).mean(dim=2))

        return {
            "vision_attention": lambda: received(queries, keys, num_heads),
            "received_attention": lambda: received(queries, keys, num_heads),
            "middle_attention": lambda: received(middle_queries, middle_keys, num_heads),
            "shallow_attention": lambda: received(shallow_queries, shallow_keys, num_heads),
            "vision_keys": head_means,
            "last_layer_attention": lambda: received(last_queries, last_keys, 1),
            "last_layer_keys": lambda: of_tokens(last_keys.output.float()),
        }

    def _rotated(self, queries: Tensor, keys: Tensor, rope: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Rotate queries and keys [1, patches, width] of all heads."""
        head_dim = self.layer.attention.head_dim
        heads = (part.view(1, part.shape[1], -1, head_dim).transpose(1, 2) for part in (queries, keys))
        rotated = apply_rotary_pos_emb(*heads, *rope, unsqueeze_dim=0)
        first, second = (torch.flatten(part.transpose(1, 2), 2) for part in rotated)
        return first, second
