"""Runs of a vision tower that leave something out: tiles that are equal to others, and patches inside the tower.

What a reduced run computes is brought into the form of a whole run, so that the rest of the engine sees no difference
but the tokens that are missing.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tops_engine import selection
from tops_engine.device.transfer import to_device
from tops_engine.errors import InvalidInput
from tops_engine.families.parts.vision_signals import captured_calls
from tops_engine.families.parts.vision_tower import PatchTower
from tops_engine.flops import VisionShape
from tops_engine.methods.tokens import TowerUse
from tops_engine.tower import TowerOptions

#: How attention and similarity count when the tower chooses patches: the weights of the TOPS paper.
DIVERSITY, COVERAGE = 0.5, 0.5


def first_equal(rows: Sequence[Tensor]) -> Tensor:
    """Return for each tensor the number of the first one with the same shape and the same bytes: int64 [n].

    Parameters
    ----------
    rows : float32 on the CPU.
    """
    seen: dict[object, list[int]] = {}
    bits = [row.contiguous().view(torch.int32) for row in rows]
    first = []
    for number, row in enumerate(bits):
        # The sum is only a key: tensors that share it are compared.
        alike = seen.setdefault((row.shape, int(row.sum())), [])
        first.append(next((other for other in alike if torch.equal(bits[other], row)), number))
        if first[-1] == number:
            alike.append(number)
    return torch.tensor(first, dtype=torch.int64)


def number_kept(keep: float, num_tokens: int) -> int:
    """Return how many of the tokens of a tile or frame remain in the tower: at least one, and not all of several."""
    return max(1, min(round(keep * num_tokens), num_tokens - 1))


def cut_layer(options: TowerOptions, num_layers: int) -> int:
    """Return the number of the first layer that reads only the kept patches.

    Raises
    ------
    InvalidInput
        If the tower has no such layer, or none before it.
    """
    layer = max(1, num_layers // 2) if options.layer is None else options.layer
    if layer >= num_layers:
        raise InvalidInput(
            f"tower_layer={layer} is not a layer of this vision tower that others come before; it has {num_layers} "
            f"layers, so give 1 to {num_layers - 1}."
        )
    return layer


def choose(features: Tensor, attention: Tensor, counts: Sequence[int], valid: Tensor | None = None) -> list[Tensor]:
    """Choose tokens by the attention that they receive and by their similarity, as the method ``tops`` does.

    Parameters
    ----------
    features : [units, n, d], the tokens of each tile or frame.
    attention : float32 [units, n].
    counts : how many tokens of each unit are chosen.
    valid : bool [units, n], False at padding; None without padding.

    Returns
    -------
    int64 [k] for each unit, ascending.
    """
    orders = selection.greedy_select(
        features, attention, list(counts), valid=valid, diversity_weight=DIVERSITY, coverage_weight=COVERAGE
    )
    return [order[:count].sort().values for order, count in zip(orders, counts, strict=True)]


@dataclass
class PatchCut:
    """Drop patches of tiles before a layer of the tower: whole blocks of which the projector makes a token.

    Attributes
    ----------
    layer : the first layer that reads only the kept patches.
    keep : the fraction of the tokens of a tile that remain.
    has_cls : whether a [CLS] token stands in front of the patches; it stays.
    block : patches along a side of the block of a token.
    kept : after a run: int64 [t, k], which tokens of each tile remain, ascending.
    """

    layer: int
    keep: float
    has_cls: bool
    block: int
    kept: Tensor = field(default_factory=lambda: torch.empty(0, 0, dtype=torch.int64))

    def __call__(self, hidden: Tensor, attention: Tensor) -> Tensor:
        """Return the hidden states that remain, the patches of each token one after the other.

        Parameters
        ----------
        hidden : [t, n, d] before the layer, patches in raster order.
        attention : float32 [t, patches], what each patch received in the layer before.
        """
        first = int(self.has_cls)
        blocks = by_block(hidden[:, first:], self.block)
        received = by_block(attention[..., None], self.block).mean(dim=(2, 3))
        count = number_kept(self.keep, blocks.shape[1])
        self.kept = torch.stack(choose(blocks.mean(dim=2), received, [count] * len(blocks)))
        rows = torch.arange(len(blocks), device=hidden.device)[:, None]
        return torch.cat([hidden[:, :first], blocks[rows, self.kept].flatten(1, 2)], dim=1)


def by_block(patches: Tensor, block: int) -> Tensor:
    """Group patches of square tiles by the block of a token: [t, patches, c] -> [t, tokens, block * block, c]."""
    side = round(patches.shape[1] ** 0.5)
    grid = patches.reshape(len(patches), side // block, block, side // block, block, -1).transpose(2, 3)
    return grid.flatten(3, 4).flatten(1, 2)


def patch_cut(tower: PatchTower, options: TowerOptions) -> PatchCut | None:
    """Return what drops patches in a run of the tower; None if it keeps all.

    Raises
    ------
    InvalidInput
        As :func:`cut_layer`.
    """
    if options.keep == 1:
        return None
    assert tower.layers is not None  # the family was asked whether it can
    return PatchCut(cut_layer(options, len(tower.layers.layers)), options.keep, tower.has_cls, tower.block)


def run_layers(tower: PatchTower, tiles: Tensor, cut: PatchCut) -> Tensor:
    """Run a tower layer by layer and drop patches on the way: [t, 3, height, width] -> [t, n, d] of the last layer."""
    parts = tower.layers
    assert parts is not None
    hidden = parts.embed(tiles)
    attention = parts.attention(parts.layers[cut.layer - 1])
    for number, layer in enumerate(parts.layers):
        if number == cut.layer - 1:
            with captured_calls(attention.queries, attention.keys) as (queries, keys):
                hidden = layer(hidden, *parts.arguments)
            hidden = cut(hidden, attention.received(queries, keys, cut.has_cls))
        else:
            hidden = layer(hidden, *parts.arguments)
    return hidden


class TileRun:
    """One run of a tower that sees tiles, each by itself.

    Parameters
    ----------
    options : what the run leaves out.
    cut : drops patches inside the tower; None keeps all.
    """

    def __init__(self, options: TowerOptions, cut: PatchCut | None) -> None:
        self.options = options
        self.cut = cut
        self._first = self._number = torch.empty(0, dtype=torch.int64)
        self._num_rows = 0

    def rows(self, tiles: Tensor, compute: Callable[[Tensor, PatchCut | None], Tensor], num_rows: int) -> Tensor:
        """Return what ``compute`` makes of tiles, of equal ones only once.

        Parameters
        ----------
        tiles : [t, 3, height, width] on the CPU.
        compute : [distinct tiles, 3, height, width] and the cut -> [distinct tiles, rows, c].
        num_rows : rows of a tile in a whole run.

        Returns
        -------
        [t, num_rows, c], 0 for rows that were dropped.
        """
        self._num_rows = num_rows
        self._first = torch.arange(len(tiles)) if self.options.dedup == "none" else first_equal(list(tiles))
        distinct, self._number = torch.unique(self._first, return_inverse=True)
        return self.restore(compute(tiles[distinct], self.cut))

    def restore(self, values: Tensor) -> Tensor:
        """Bring values of the run, [distinct tiles, rows, ...], into the form of a whole run: [t, num_rows, ...]."""
        if self.cut is not None and values.shape[1] < self._num_rows:
            whole = values.new_zeros(len(values), self._num_rows, *values.shape[2:])
            whole[torch.arange(len(values), device=values.device)[:, None], self.cut.kept] = values
            values = whole
        return values[to_device(self._number, values.device)]

    def tile_numbers(self) -> Tensor:
        """Return the number of the tile of each row, from 1: int64 [t, num_rows]."""
        return torch.arange(1, len(self._number) + 1)[:, None].expand(-1, self._num_rows)

    def present(self, device: torch.device) -> Tensor | None:
        """Return 1.0 for the rows that the tower kept and 0.0 for the others, [t, num_rows, 1]; None if it kept all."""
        if self.cut is None:
            return None
        return self.restore(torch.ones(*self.cut.kept.shape, 1, device=device))

    def uses(self, family: Any, prompts: Sequence[Any]) -> list[TowerUse]:
        """Return what the tower did for each picture and video of the prompts of the run.

        Parameters
        ----------
        family : has ``tile_counts``, and the tower whose FLOPs are counted.
        """
        shape: VisionShape = family.tower.shape
        kept = self._num_rows if self.cut is None else self.cut.kept.shape[1]
        cut = None if self.cut is None else (self.cut.layer, kept * self.cut.block**2)
        projector = 0 if family.projects_twins else shape.projector_flops
        of_twin = shape.tile_flops() + projector
        of_first = shape.tile_flops() - shape.tile_flops(cut) + projector * (self._num_rows - kept) // self._num_rows
        uses, begin = [], 0
        for count in itertools.chain(*map(family.tile_counts, prompts)):
            numbers = torch.arange(begin, begin + count)
            encoded = int((self._first[numbers] == numbers).sum())
            begin += count
            saved = encoded * of_first + (count - encoded) * of_twin
            uses.append(TowerUse(shape.num_patches * count, shape.num_patches * encoded, saved))
        return uses
