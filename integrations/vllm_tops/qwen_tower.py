"""Read the signals of vLLM's Qwen-VL tower, like ``tops_engine/families/parts/packed_tower.py`` in the engine."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from tops_engine.budget import Keep
from tops_engine.families.parts.vision_signals import Call, captured_calls, patch_attention
from tops_engine.media.layout import VisualLayout, frame_layout, grid_boxes
from tops_engine.methods import VisualTokens
from vllm_tops.tower import over_ranks, select

Grid = Sequence[int]


class QwenTower:
    """A Qwen-VL tower whose inputs and outputs are captured while it encodes pictures or videos.

    The tower has no [CLS]. Its vision attention is the attention that a patch receives in the last layer in which all
    patches of the picture or frame see each other. With tensor parallelism a rank has some of the heads; their signals
    are gathered.
    """

    def __init__(self, visual: Any) -> None:
        self.visual = visual
        full = getattr(visual, "fullatt_block_indexes", None)
        self.attention = visual.blocks[max(full) if full else -1].attn
        levels = len(getattr(visual, "deepstack_visual_indexes", ()))
        self.token_width = visual.out_hidden_size // (1 + levels)
        # vLLM compiles the merger, so its calls cannot be captured; those of its first part, a norm of each patch, can.
        self.patch_norm = next(visual.merger.children())

    @contextmanager
    def listening(self, grids: Sequence[Grid], are_videos: bool) -> Iterator["Pass"]:
        """Capture the modules while they encode pictures or videos of (times, rows, columns) patches each."""
        with captured_calls(self.attention.qkv, self.attention.apply_rotary_emb, self.patch_norm) as calls:
            yield Pass(self, grids, are_videos, *calls)


class Pass:
    """One run of a :class:`QwenTower`, on the patches of one or several pictures or videos."""

    def __init__(
        self, tower: QwenTower, grids: Sequence[Grid], are_videos: bool, projected: Call, rotated: Call, normed: Call
    ) -> None:
        self.tower, self.grids, self.are_videos = tower, grids, are_videos
        self._projected, self._rotated, self._normed = projected, rotated, normed

    def prune(self, features: Sequence[Tensor], keeps: Sequence[Keep]) -> tuple[list[Tensor], list[Tensor]]:
        """Select the kept tokens of each picture or video.

        Args:
            features: The tokens of each of them, ``[n, d]``, or ``[n, d * (1 + levels)]`` with the features that
                deepstack adds to each token in the first decoder layers. These are kept with their tokens.
            keeps: The budget of each of them.

        Returns:
            The kept tokens of each of them, ``[k, ...]``, and their indices, int64 ``[k]``.
        """
        selections = select([self._visual(number, tokens) for number, tokens in enumerate(features)], keeps)
        kept = []
        for tokens, selection in zip(features, selections, strict=True):
            chosen = tokens[selection.indices.to(tokens.device)]
            if selection.features is not None:
                chosen = torch.cat(
                    [selection.features.to(tokens.dtype), chosen[:, selection.features.shape[1] :]], dim=1
                )
            kept.append(chosen)
        return kept, [selection.indices for selection in selections]

    def _visual(self, number: int, tokens: Tensor) -> VisualTokens:
        visual = self.tower.visual
        times, rows, columns = self.grids[number]
        grid = rows // visual.spatial_merge_size, columns // visual.spatial_merge_size
        size = grid[0] * grid[1]
        layout = (
            frame_layout(times, grid_boxes(*grid), grid, visual.patch_embed.temporal_patch_size)
            if self.are_videos
            else VisualLayout(grid_boxes(*grid), torch.zeros(size, dtype=torch.int64), (grid,))
        )
        lazy: dict[str, Any] = {
            name: cache(partial(compute, number))
            for name, compute in {
                "vision_attention": self._vision_attention,
                "vision_keys": self._vision_keys,
                "encoder_features": self._encoder_features,
            }.items()
        }
        return VisualTokens(
            tokens[:, : self.tower.token_width],
            layout,
            tiles=lambda: torch.arange(1, times + 1, device=tokens.device).repeat_interleave(size),
            project=self._project,
            **lazy,
        )

    def _project(self, rows: Tensor) -> Tensor:
        """Project features of the encoder, ``[k, c]``, to tokens ``[k, d]``."""
        visual = self.tower.visual
        tokens: Tensor = visual.merger(rows.view(-1, self._normed.input.shape[-1]))
        return tokens

    def _vision_attention(self, number: int) -> Tensor:
        # [2, patches, heads, head_dim]: queries, then keys
        queries, keys = self._patches(self._rotated.output.flatten(2), number, dim=1).unbind()
        attention = self.tower.attention
        scale = attention.hidden_size_per_attention_head**-0.5
        heads, times = attention.num_attention_heads_per_partition, self.grids[number][0]
        # Patches see those of their own frame.
        frames = zip(queries.chunk(times), keys.chunk(times), strict=True)
        received = torch.cat([patch_attention(q[None], k[None], heads, scale, has_cls=False)[0] for q, k in frames])
        return self._of_tokens(over_ranks(attention.tp_size, received), number).mean(dim=1)

    def _vision_keys(self, number: int) -> Tensor:
        attention, projected = self.tower.attention, self._projected.output[0]
        if hasattr(attention, "split_qkv"):
            keys = attention.split_qkv(projected)[1]
        else:
            heads = 3, attention.num_attention_heads_per_partition, attention.hidden_size_per_attention_head
            keys = projected.view(*projected.shape[:2], *heads)[..., 1, :, :]
        mean = over_ranks(attention.tp_size, self._patches(keys[:, 0], number).float().mean(dim=1))
        return self._of_tokens(mean, number).mean(dim=1)

    def _encoder_features(self, number: int) -> Tensor:
        rows = self._normed.input.reshape(-1, self._normed.input.shape[-1])
        return self._of_tokens(self._patches(rows, number), number).flatten(1)

    def _patches(self, values: Tensor, number: int, dim: int = 0) -> Tensor:
        """Return the values of one picture or video, in the order of the tower."""
        lengths = [times * rows * columns for times, rows, columns in self.grids]
        return torch.split(values, lengths, dim=dim)[number]

    def _of_tokens(self, values: Tensor, number: int) -> Tensor:
        """Group the ``[patches, ...]`` of a picture or video into ``[tokens, patches of a token, ...]``."""
        visual = self.tower.visual
        tokens = values.view(-1, visual.spatial_merge_size**2, *values.shape[1:])
        if not hasattr(visual, "get_window_index_thw"):
            return tokens
        window_order, _ = visual.get_window_index_thw(*self.grids[number])
        return tokens[window_order.argsort().to(tokens.device)]
