"""The vision tower of LFM2-VL: SigLIP 2 on tiles and pictures of any size, padded to one number of patches."""

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tops_engine.families.parts.tile_grid import block_means
from tops_engine.families.parts.vision_signals import Call
from tops_engine.families.parts.vision_tower import LayerAttention, Signals, middle_layer, shallow_layer
from tops_engine.flops import VisionShape


class NaflexTower:
    """Read the signals of a run of the tower. All values have the shape [1, tokens of all tiles, c].

    The tower has no [CLS]: relevance is the mean attention that a token's patches receive in the last layer.

    Parameters
    ----------
    tower : ``model.model.vision_tower``.
    block : patches along a side of the block that becomes one token.
    max_patches : of a tile, padding included.
    """

    def __init__(self, tower: Any, block: int, max_patches: int) -> None:
        self.tower = tower
        self.block = block
        layers = tower.encoder.layers
        self.attention = LayerAttention.of(layers[-1])
        self.middle_attention = LayerAttention.of(layers[middle_layer(len(layers))])
        self.shallow_attention = LayerAttention.of(layers[shallow_layer(len(layers))])
        vision = tower.config
        self.shape = VisionShape(
            num_layers=vision.num_hidden_layers,
            hidden_size=vision.hidden_size,
            intermediate_size=vision.intermediate_size,
            num_tokens=max_patches,
            num_patches=max_patches,
            patch_values=vision.num_channels * vision.patch_size**2,
            num_projected=0,
            projector_widths=(),
        )

    def taps(self) -> Sequence[nn.Module]:
        attentions = self.attention, self.middle_attention, self.shallow_attention
        return self.tower, *itertools.chain(*((attention.queries, attention.keys) for attention in attentions))

    def signals(self, taps: Sequence[Call]) -> Signals:
        run, queries, keys, middle_queries, middle_keys, shallow_queries, shallow_keys = taps

        def of_tokens(patches: Sequence[Tensor]) -> Tensor:
            """Average the patches of each tile, [patches, c], over its tokens, and join the tiles."""
            grids = run.keywords["spatial_shapes"].tolist()
            means = [
                block_means(rows[None], self.block, (height, width))[0]
                for rows, (height, width) in zip(patches, grids, strict=True)
            ]
            return torch.cat(means)[None]

        def lengths() -> list[int]:
            return [int(count) for count in run.keywords["spatial_shapes"].prod(dim=1)]

        def received(attention: LayerAttention, queries: Call, keys: Call) -> Tensor:
            calls = zip(queries.output, keys.output, lengths(), strict=True)
            tiles = [
                attention.received(_call(query[None, :count]), _call(key[None, :count]), has_cls=False)[0, :, None]
                for query, key, count in calls
            ]
            return of_tokens(tiles)[..., 0]

        def key_rows() -> Tensor:
            return of_tokens([key[:count].float() for key, count in zip(keys.output, lengths(), strict=True)])

        def tiles() -> Tensor:
            counts = torch.tensor(lengths()) // self.block**2
            numbers = torch.arange(1, len(counts) + 1).repeat_interleave(counts)
            return numbers[None].to(keys.output.device)

        whole = self.attention
        one_head = LayerAttention(whole.queries, whole.keys, 1, self.tower.config.hidden_size**-0.5)
        return {
            "tiles": tiles,
            "vision_attention": lambda: received(whole, queries, keys),
            "received_attention": lambda: received(whole, queries, keys),
            "middle_attention": lambda: received(self.middle_attention, middle_queries, middle_keys),
            "shallow_attention": lambda: received(self.shallow_attention, shallow_queries, shallow_keys),
            "vision_keys": lambda: torch.unflatten(key_rows(), 2, (whole.num_heads, -1)).mean(dim=2),
            "last_layer_attention": lambda: received(one_head, queries, keys),
            "last_layer_keys": key_rows,
        }


def _call(output: Tensor) -> Call:
    return Call(output, output)
