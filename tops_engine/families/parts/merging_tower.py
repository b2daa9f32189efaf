"""The vision tower of MiniCPM-V: patches of all tiles in one row, 2 x 2 of them merged behind one of its layers."""

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tops_engine.families.parts.tile_grid import block_means
from tops_engine.families.parts.vision_signals import Call, patch_attention
from tops_engine.families.parts.vision_tower import LayerAttention, Signals, middle_layer, shallow_layer


class MergingTower:
    """Run the tower and read the signals of a run. All signals have the shape [1, tokens of all tiles, c].

    The tower has no [CLS]: relevance is the mean attention that a token's patches receive in the last layer.

    Parameters
    ----------
    tower : ``model.model.vision_tower``.
    config : of the model; its ``downsample_mode`` says whether the tower merges, or leaves it to the projector alone.

    Attributes
    ----------
    block : patches along a side of the block that becomes one token.
    """

    def __init__(self, tower: Any, config: Any) -> None:
        self.tower = tower
        self.merges = config.downsample_mode != "4x"
        self.block = 4 if self.merges else 2
        layers = tower.encoder.layers
        inserted = tower.config.insert_layer_id if self.merges else -1
        #: How many layers, from the first on, see single patches.
        self.num_patch_layers = inserted + 1 if inserted >= 0 else len(layers)
        self.last = len(layers) - 1
        self.middle, self.shallow = middle_layer(len(layers)), shallow_layer(len(layers))

    def features(self, pixels: Tensor, sizes: Tensor) -> Tensor:
        """Run the tower, and lay the patches of each token side by side, as the projector takes them.

        Parameters
        ----------
        pixels : [1, 3, patch size, n], the patches of all tiles.
        sizes : int [tiles, 2] on the CPU, where the tower reads them: rows and columns of patches.

        Returns
        -------
        [tokens, c]
        """
        run = self.tower(pixels, target_sizes=sizes, use_vit_merger=self.merges)
        grids = sizes // (self.block // 2)
        tiles = torch.split(run.last_hidden_state[0], grids.prod(1).tolist())
        return torch.cat([_side_by_side(tile, *grid) for tile, grid in zip(tiles, grids.tolist(), strict=True)])

    def taps(self) -> Sequence[nn.Module]:
        attentions = [self._attention(layer) for layer in (self.last, self.middle, self.shallow)]
        return self.tower, *itertools.chain(*((attention.queries, attention.keys) for attention in attentions))

    def signals(self, taps: Sequence[Call]) -> Signals:
        run, queries, keys, middle_queries, middle_keys, shallow_queries, shallow_keys = taps
        num_heads = self.tower.config.num_attention_heads

        def received(layer: int, queries: Call, keys: Call, heads: int = num_heads) -> Tensor:
            lengths = self._grids(layer, run).prod(1).tolist()
            scale = (queries.output.shape[-1] // heads) ** -0.5
            tiles = zip(torch.split(queries.output[0], lengths), torch.split(keys.output[0], lengths), strict=True)
            rows = [patch_attention(query[None], key[None], heads, scale, has_cls=False)[0] for query, key in tiles]
            return self._of_tokens(layer, run, torch.cat(rows)[:, None])[..., 0]

        def key_rows() -> Tensor:
            return self._of_tokens(self.last, run, keys.output[0].float())

        def tiles() -> Tensor:
            counts = (run.keywords["target_sizes"] // self.block).prod(1)
            return torch.arange(1, len(counts) + 1).repeat_interleave(counts)[None].to(keys.output.device)

        return {
            "tiles": tiles,
            "vision_attention": lambda: received(self.last, queries, keys),
            "received_attention": lambda: received(self.last, queries, keys),
            "middle_attention": lambda: received(self.middle, middle_queries, middle_keys),
            "shallow_attention": lambda: received(self.shallow, shallow_queries, shallow_keys),
            "vision_keys": lambda: torch.unflatten(key_rows(), 2, (num_heads, -1)).mean(dim=2),
            "last_layer_attention": lambda: received(self.last, queries, keys, heads=1),
            "last_layer_keys": key_rows,
        }

    def flops(self, sizes: Iterable[Sequence[int]]) -> int:
        """Return the FLOPs of the tower for tiles of these rows and columns of patches."""
        config = self.tower.config
        width, size = config.hidden_size, config.intermediate_size
        late = config.num_hidden_layers - self.num_patch_layers
        total = 0
        for rows, columns in sizes:
            patches, merged = rows * columns, rows * columns // 4
            total += 2 * patches * config.num_channels * config.patch_size**2 * width
            for layers, tokens in ((self.num_patch_layers, patches), (late, merged)):
                total += layers * (2 * tokens * width * (4 * width + 2 * size) + 4 * tokens**2 * width)
            if late or self.merges:
                attention = 2 * patches * 4 * width**2 + 4 * patches * 4 * width
                total += attention + 2 * merged * 4 * size * (4 * width + width)
        return total

    def _attention(self, layer: int) -> LayerAttention:
        attention = self.tower.encoder.layers[layer].self_attn
        return LayerAttention(attention.q_proj, attention.k_proj, attention.num_heads, attention.scaling)

    def _grids(self, layer: int, run: Call) -> Tensor:
        """Return rows and columns of what a layer sees of each tile: int [tiles, 2]."""
        sizes: Tensor = run.keywords["target_sizes"]
        return sizes if layer < self.num_patch_layers else sizes // 2

    def _of_tokens(self, layer: int, run: Call, rows: Tensor) -> Tensor:
        """Average what a layer sees of all tiles, [n, c], over the tokens: [1, tokens, c]."""
        grids, block = self._grids(layer, run), self.block if layer < self.num_patch_layers else self.block // 2
        tiles = zip(torch.split(rows, grids.prod(1).tolist()), grids.tolist(), strict=True)
        return torch.cat([block_means(tile[None], block, grid)[0] for tile, grid in tiles])[None]


def _side_by_side(rows: Tensor, height: int, width: int) -> Tensor:
    """Lay 2 x 2 rows of a grid side by side: [height * width, c] -> [height * width / 4, 4 * c]."""
    blocks = rows.view(height // 2, 2, width // 2, 2, -1).transpose(1, 2)
    return blocks.reshape(height * width // 4, -1)
