"""Runs of a Qwen-VL tower that leave something out: equal frames, patches equal to their neighbour, dropped patches.

The tower makes a token of a group of patches (2 x 2), so groups are left out, never single patches. It reads the frames
of a video as it reads pictures: each by itself, and with positions that do not depend on the time. Equal frames and
pictures therefore have equal tokens.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers.utils.generic import is_flash_attention_requested

from tops_engine.device.transfer import to_device
from tops_engine.families.parts.packed_tower import PackedTower
from tops_engine.families.parts.tower_run import choose, cut_layer, first_equal, number_kept
from tops_engine.families.parts.vision_signals import Call, captured_calls
from tops_engine.flops import PackedVisionShape
from tops_engine.methods.tokens import TowerUse
from tops_engine.tower import TowerOptions


@dataclass(frozen=True)
class Groups:
    """The groups of patches that a layer reads, in the tower's order.

    Attributes
    ----------
    places : int64 [k], which of the groups of all distinct frames they are.
    frame, window : int64 [k], the frame and the window of attention that they belong to.
    """

    places: Tensor
    frame: Tensor
    window: Tensor

    def part(self, chosen: Tensor) -> "Groups":
        """Return some of the groups: int64 [c], ascending."""
        return Groups(self.places[chosen], self.frame[chosen], self.window[chosen])

    def lengths(self, full: bool) -> Tensor:
        """Return the groups of each frame, or of each window: int64."""
        return torch.unique_consecutive(self.frame if full else self.window, return_counts=True)[1]


class PackedRun:
    """One run of a packed tower.

    Parameters
    ----------
    options : what the run leaves out.
    tower : the tower.
    """

    def __init__(self, options: TowerOptions, tower: PackedTower) -> None:
        self.options = options
        self.tower = tower
        self.cut = None if options.keep == 1 else cut_layer(options, len(tower.visual.blocks))
        #: By the number of groups that a layer read: the row of each group of the distinct frames, -1 for none.
        self._rows: dict[int, Tensor] = {}
        self._read: list[Groups] = []

    def tokens(self, pixels: Tensor, grids: Tensor, features: Callable[[Tensor, Tensor], list[Tensor]]) -> Tensor:
        """Return the tokens of all pictures and videos, [tokens, d]; 0 for those that were dropped.

        Parameters
        ----------
        pixels : [p, values] on the CPU, the patches of all of them.
        grids : int64 [items, 3] on the CPU: times, rows and columns of the patches of each.
        features : transformers' own forward: patches and grids to the tokens of each picture.
        """
        frames = grids.repeat_interleave(grids[:, 0], dim=0)
        frames[:, 0] = 1
        patches = torch.split(pixels, frames.prod(dim=1).tolist())
        shaped = [rows.view(*grid, -1) for rows, grid in zip(patches, frames.tolist(), strict=True)]
        self._first = torch.arange(len(frames)) if self.options.dedup == "none" else first_equal(shaped)
        distinct, self._number = torch.unique(self._first, return_inverse=True)
        self._grids, self._frames = grids, frames[distinct]
        seen = [patches[number] for number in distinct.tolist()]
        self._sizes = self._frames.prod(dim=1) // self.tower.shape.patches_per_token
        if self.cut is None and self.options.dedup != "patches":
            tokens = torch.cat(features(torch.cat(seen), self._frames))
            self._read = [self._all_groups()]
        else:
            tokens = self._run(seen)
        return tokens[to_device(self._repeated(), tokens.device)]

    def restore(self, values: Tensor) -> Tensor:
        """Bring values of the run, [1, groups, ...] in the tower's order, into the form of a whole run."""
        rows = values[0]
        if rows.shape[0] in self._rows:
            rows = _taken(rows, self._rows[rows.shape[0]])
        whole = self.tower.in_prompt_order(rows, self._frames)[to_device(self._repeated(), rows.device)]
        order, _ = self.tower.windows(self._grids)
        return (whole if order is None else whole[to_device(order, whole.device)])[None]

    def tile_numbers(self) -> Tensor:
        """Return the number of the frame of each token in the order of a whole run, from 1: int64 [1, tokens]."""
        sizes = self._sizes[self._number]
        numbers = torch.arange(1, len(sizes) + 1).repeat_interleave(sizes)
        order, _ = self.tower.windows(self._grids)
        return (numbers if order is None else numbers[order])[None]

    def present(self, device: torch.device) -> Tensor | None:
        """Return 1.0 for the tokens that the tower kept, 0.0 for the others: [1, tokens, 1]; None if it kept all."""
        if self.cut is None:
            return None
        return self.restore(torch.ones(1, len(self._read[-1].places), 1, device=device))

    def uses(self, family: Any, _prompts: Sequence[Any]) -> list[TowerUse]:
        """Return what the tower did for each picture and video of the prompts of the run.

        Parameters
        ----------
        family : has the tower whose FLOPs are counted.
        """
        shape: PackedVisionShape = family.tower.shape
        unit, everything = shape.patches_per_token, self._all_groups()
        sizes, encoded, saved = [], [], []
        for number, distinct in enumerate(self._number.tolist()):
            is_first = int(self._first[number]) == number
            sizes.append(int(self._sizes[distinct]) * unit)
            encoded.append(int((self._read[0].frame == distinct).sum()) * unit if is_first else 0)
            run = self._run_flops(shape, distinct) if is_first else 0
            saved.append(self._flops(shape, everything, distinct) - run)
        ends = [0, *itertools.accumulate(self._grids[:, 0].tolist())]
        return [
            TowerUse(*(sum(values[begin:end]) for values in (sizes, encoded, saved)))
            for begin, end in itertools.pairwise(ends)
        ]

    def _repeated(self) -> Tensor:
        """Return which token of the distinct frames each token is, in the order of the prompt: int64 [tokens]."""
        starts = [0, *itertools.accumulate(self._sizes.tolist())]
        return torch.cat([torch.arange(starts[number], starts[number + 1]) for number in self._number.tolist()])

    def _all_groups(self) -> Groups:
        """Return all groups of the distinct frames."""
        order, ends = self.tower.windows(self._frames)
        count = int(self._sizes.sum())
        frame = torch.arange(len(self._frames)).repeat_interleave(self._sizes)
        if order is None:
            return Groups(torch.arange(count), frame, torch.zeros(count, dtype=torch.int64))
        lengths = ends.diff() // self.tower.shape.patches_per_token
        window = torch.arange(len(lengths)).repeat_interleave(lengths)
        return Groups(torch.arange(count), frame[order], window)

    def _run(self, seen: Sequence[Tensor]) -> Tensor:
        """Run the tower's blocks over the distinct frames; return their tokens in the order of the prompt."""
        visual = self.tower.visual
        groups = self._all_groups()
        hidden, rope = self._embed(torch.cat(list(seen)))
        if self.options.dedup == "patches":
            twins = self._twins(seen)
            chosen = (twins == torch.arange(len(twins))).nonzero().flatten()
            groups = groups.part(chosen)
            hidden, *rope = (_of_groups(values, chosen) for values in (hidden, *rope))
            self._rows[len(chosen)] = torch.searchsorted(chosen, twins)
        self._read = [groups]
        for number, block in enumerate(visual.blocks):
            if number + 1 == self.cut:
                with captured_calls(block.attn, block.attn.qkv) as (layer, projected):
                    hidden = self._block(number, groups, hidden, rope)
                chosen = self._choose(groups, hidden, layer, projected)
                self._note_cut(groups, chosen)
                groups = groups.part(chosen)
                hidden, *rope = (_of_groups(values, chosen) for values in (hidden, *rope))
                self._read.append(groups)
            else:
                hidden = self._block(number, groups, hidden, rope)
            deepstack = getattr(visual, "deepstack_visual_indexes", ())
            if number in deepstack:
                # The family reads what these mergers return.
                visual.deepstack_merger_list[list(deepstack).index(number)](hidden.flatten(0, 1))
        tokens = visual.merger(hidden.flatten(0, 1))
        if len(tokens) in self._rows:
            tokens = _taken(tokens, self._rows[len(tokens)])
        return self.tower.in_prompt_order(tokens, self._frames)

    def _embed(self, pixels: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return the input of the first block, [groups, patches, d], and cosine and sine of the positions, likewise."""
        visual, unit = self.tower.visual, self.tower.shape.patches_per_token
        inputs = self.tower.inputs(self._frames)
        hidden = visual.patch_embed(to_device(pixels, visual.device, visual.dtype))
        if "interp_indices" in inputs:
            positions = visual.pos_embed(inputs["interp_indices"]) * inputs["interp_weights"][:, :, None]
            hidden = hidden + positions.sum(1).to(hidden.dtype)
        rope = visual.rotary_pos_emb(hidden, inputs["position_ids"])
        parts = [values.reshape(len(hidden) // unit, unit, -1) for values in (hidden, *rope)]
        if "window_index" in inputs:
            parts = [values[inputs["window_index"]] for values in parts]
        return parts[0], parts[1:]

    def _block(self, number: int, groups: Groups, hidden: Tensor, rope: Sequence[Tensor]) -> Tensor:
        """Run a block: [groups, patches, d] -> the same."""
        visual = self.tower.visual
        lengths = groups.lengths(self.tower.is_full(number)) * self.tower.shape.patches_per_token
        ends = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]).int()
        flash = is_flash_attention_requested(visual.config)
        output = visual.blocks[number](
            hidden.flatten(0, 1),
            cu_seqlens=to_device(ends, hidden.device) if flash else ends,
            max_seqlen=int(lengths.max()) if flash else None,
            position_embeddings=tuple(values.flatten(0, 1) for values in rope),
        )
        return output.view_as(hidden)

    def _choose(self, groups: Groups, hidden: Tensor, layer: Call, projected: Call) -> Tensor:
        """Choose the groups of each frame that remain: int64 [c], ascending."""
        attention = self.tower.attention_received(layer, projected, self.tower.attention.num_heads)[0]
        sizes = groups.lengths(full=True).tolist()
        means = pad_sequence(list(torch.split(hidden.mean(dim=1), sizes)), batch_first=True)
        received = pad_sequence(list(torch.split(attention, sizes)), batch_first=True)
        valid = pad_sequence([torch.ones(size, dtype=torch.bool, device=hidden.device) for size in sizes], True)
        chosen = choose(means, received, [number_kept(self.options.keep, size) for size in sizes], valid)
        starts = itertools.accumulate([0, *sizes[:-1]])
        return torch.cat([start + places.cpu() for start, places in zip(starts, chosen, strict=True)])

    def _note_cut(self, groups: Groups, chosen: Tensor) -> None:
        """Note which row behind the cut each group of the distinct frames has, -1 for those that were dropped."""
        behind = torch.full((len(groups.places),), -1)
        behind[chosen] = torch.arange(len(chosen))
        before = self._rows.get(len(groups.places), groups.places)
        self._rows[len(chosen)] = behind[before]

    def _twins(self, seen: Sequence[Tensor]) -> Tensor:
        """Return for each group, in the tower's order, the one that stands for it: its equal neighbour's, or itself.

        Neighbours are the group to the left and the one above in the same frame.
        """
        unit, side = self.tower.shape.patches_per_token, self.tower.visual.config.spatial_merge_size
        twins: list[int] = []
        for patches, (_, rows, columns) in zip(seen, self._frames.tolist(), strict=True):
            grid = patches.view(rows // side, columns // side, unit * patches.shape[1])
            left, above = torch.zeros(2, *grid.shape[:2], dtype=torch.bool)
            left[:, 1:] = (grid[:, 1:] == grid[:, :-1]).all(dim=-1)
            above[1:] = (grid[1:] == grid[:-1]).all(dim=-1)
            width = grid.shape[1]
            for beside, over in zip(left.flatten().tolist(), above.flatten().tolist(), strict=True):
                own = len(twins)
                twins.append(twins[own - 1] if beside else twins[own - width] if over else own)
        stands = torch.tensor(twins)
        order, _ = self.tower.windows(self._frames)
        if order is None:
            return stands
        # The first of a group in the tower's order stands for it there.
        stands = stands[order]
        first = torch.full_like(stands, len(stands)).scatter_reduce(0, stands, torch.arange(len(stands)), "amin")
        return first[stands]

    def _run_flops(self, shape: PackedVisionShape, frame: int) -> int:
        """Return the FLOPs of the run for one of the distinct frames."""
        bounds = [0, *([] if self.cut is None else [self.cut]), shape.num_layers]
        return sum(
            self._flops(shape, groups, frame, start, end)
            for groups, (start, end) in zip(self._read, itertools.pairwise(bounds), strict=True)
        )

    def _flops(
        self, shape: PackedVisionShape, groups: Groups, frame: int, start: int = 0, end: int | None = None
    ) -> int:
        """Return the FLOPs of layers [start, end) over the groups of a frame, with patch embedding and merger."""
        unit = shape.patches_per_token
        own = groups.window[groups.frame == frame]
        windows = torch.unique_consecutive(own, return_counts=True)[1] * unit
        return shape.part_flops([len(own) * unit], windows.tolist(), start, end)


def _of_groups(values: Tensor, chosen: Tensor) -> Tensor:
    return values[to_device(chosen, values.device)]


def _taken(rows: Tensor, numbers: Tensor) -> Tensor:
    """Return the rows with these numbers, 0 where the number is -1."""
    numbers = to_device(numbers, rows.device)
    taken = rows[numbers.clamp_min(0)]
    return taken * (numbers >= 0).view(-1, *[1] * (rows.ndim - 1)).to(taken.dtype)
