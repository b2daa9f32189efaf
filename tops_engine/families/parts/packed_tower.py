"""The vision tower of Qwen-VL: patches of all pictures and frames in one row, attention within a frame or a window."""

import itertools
import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils.generic import is_flash_attention_requested
from transformers.vision_utils import (
    get_vision_cu_seqlens,
    get_vision_interpolation_indices_and_weights,
    get_vision_position_ids,
    get_vision_window_index,
)

from tops_engine.device.transfer import to_device
from tops_engine.families.parts.vision_signals import Call, patch_attention
from tops_engine.families.parts.vision_tower import Signals
from tops_engine.flops import PackedVisionShape


class PackedTower:
    """Read the signals of a Qwen-VL tower, and compute its inputs on the host.

    The tower has no [CLS]. Relevance is the mean attention that a patch receives in the last layer with attention over
    the whole picture or frame; the same layer stands for the tower's last one. The middle layer is such a layer too,
    the one nearest to half the depth: the 16th of the 32 of Qwen2.5-VL, as in the code of HiPrune; the
    shallow one is the one nearest to a quarter, the 8th, as in the code of VScan. Attention and keys are averaged over
    the patches of a token. The encoder features of a token are those of its patches, concatenated.

    All values have the shape [1, tokens, c]: the projector sees one row of tokens, in the tower's own order.

    Parameters
    ----------
    visual : the tower, ``model.model.visual``.
    """

    def __init__(self, visual: Any) -> None:
        self.visual = visual
        self.shape = PackedVisionShape.from_config(visual.config)
        full = getattr(visual.config, "fullatt_block_indexes", None)
        self.attention = visual.blocks[max(full) if full else -1].attn
        whole = full or range(len(visual.blocks))
        half, quarter = len(visual.blocks) // 2 - 1, len(visual.blocks) // 4 - 1
        self.middle_attention = visual.blocks[min(whole, key=lambda number: abs(number - half))].attn
        self.shallow_attention = visual.blocks[min(whole, key=lambda number: abs(number - quarter))].attn

    def taps(self) -> Sequence[nn.Module]:
        attentions = self.attention, self.middle_attention, self.shallow_attention
        return *itertools.chain(*((attention, attention.qkv) for attention in attentions)), self.visual.merger

    def signals(self, taps: Sequence[Call]) -> Signals:
        layer, projected, middle_layer, middle_projected, shallow_layer, shallow_projected, merger = taps
        num_heads = self.attention.num_heads

        def keys() -> Tensor:
            return self._mean_of_patches(projected.output.chunk(3, dim=-1)[1].float())

        def frames() -> Tensor:
            lengths = torch.tensor(self.lengths(layer))
            numbers = torch.arange(1, len(lengths) + 1).repeat_interleave(lengths)
            return to_device(numbers, layer.input.device)[None, :: self.shape.patches_per_token]

        return {
            "encoder_features": lambda: merger.input.reshape(1, -1, self.shape.merged_size),
            "tiles": frames,
            "vision_attention": lambda: self.attention_received(layer, projected, num_heads),
            "received_attention": lambda: self.attention_received(layer, projected, num_heads),
            "middle_attention": lambda: self.attention_received(middle_layer, middle_projected, num_heads),
            "shallow_attention": lambda: self.attention_received(shallow_layer, shallow_projected, num_heads),
            "vision_keys": lambda: self._heads(keys()[0]).mean(dim=1)[None],
            "last_layer_attention": lambda: self.attention_received(layer, projected, num_heads=1),
            "last_layer_keys": keys,
        }

    def inputs(self, grids: Tensor) -> dict[str, Any]:
        """Compute what the tower would compute from the grids: the positions of patches, where frames and windows end.

        Parameters
        ----------
        grids : int64 [n, 3] on the CPU: times, rows and columns of patches of each picture and video.

        Returns
        -------
        Keyword arguments of the tower's forward.
        """
        config, device = self.visual.config, self.visual.device
        inputs: dict[str, Any] = {
            "position_ids": to_device(get_vision_position_ids(grids, config.spatial_merge_size), device)
        }
        ends = {"": get_vision_cu_seqlens(grids)}
        window_order, window_ends = self.windows(grids)
        if window_order is not None:
            inputs["window_index"] = to_device(window_order, device)
            ends["window_"] = window_ends
        flash = is_flash_attention_requested(config)
        for what, values in ends.items():
            # Without flash attention the host splits the sequences in each layer, so the ends stay on the host.
            inputs[f"cu_{what}seqlens"] = to_device(values, device) if flash else values
            inputs[f"max_{what}seqlen"] = int(values.diff().max()) if flash else None
        return inputs

    def windows(self, grids: Tensor) -> tuple[Tensor | None, Tensor]:
        """Return how the tower groups patches in windows of attention.

        Returns
        -------
        The order in which the windows hold the tokens, int64 [tokens], or None if the tower has no windows; and the
        patches where each window begins and the last one ends, int64 [windows + 1].
        """
        config = self.visual.config
        if not hasattr(config, "window_size"):
            return None, torch.zeros(1, dtype=torch.int64)
        return get_vision_window_index(
            grids,
            spatial_merge_size=config.spatial_merge_size,
            window_size=config.window_size,
            patch_size=config.patch_size,
        )

    def is_full(self, number: int) -> bool:
        """Return whether a block has attention over whole frames, and not within windows."""
        return number in self.shape.full_layers

    def in_prompt_order(self, tokens: Tensor, grids: Tensor) -> Tensor:
        """Bring tokens [tokens, c] from the tower's order into that of the prompt."""
        window_order, _ = self.windows(grids)
        return tokens if window_order is None else tokens[to_device(window_order.argsort(), tokens.device)]

    def flops(self, grids: Tensor) -> int:
        """Return the FLOPs of encoding and merging pictures and videos with these grids."""
        frames = [rows * columns for times, rows, columns in grids.tolist() for _ in range(times)]
        return self.shape.flops(frames, self.windows(grids)[1].diff().tolist())

    def attention_received(self, layer: Call, projected: Call, num_heads: int) -> Tensor:
        """Return the mean attention that the patches of each token receive from their frame: float32 [1, tokens]."""
        queries, keys, _ = (self._heads(part) for part in projected.output.chunk(3, dim=-1))
        queries, keys = self.rotate(queries, keys, layer)
        lengths = self.lengths(layer)
        scale = (self.shape.hidden_size // num_heads) ** -0.5
        frames = zip(torch.split(queries.flatten(1), lengths), torch.split(keys.flatten(1), lengths), strict=True)
        received = [patch_attention(q[None], k[None], num_heads, scale, has_cls=False)[0] for q, k in frames]
        return self._mean_of_patches(torch.cat(received)[:, None])[..., 0]

    def rotate(self, queries: Tensor, keys: Tensor, layer: Call) -> tuple[Tensor, Tensor]:
        """Rotate queries and keys, [patches, heads, head_dim], as in a call of an attention layer."""
        rotated: tuple[Tensor, Tensor] = sys.modules[type(self.visual).__module__].apply_rotary_pos_emb_vision(
            queries, keys, *layer.keywords["position_embeddings"]
        )
        return rotated

    def lengths(self, layer: Call) -> list[int]:
        """Return the number of patches of each frame in a call of an attention layer."""
        ends = layer.keywords["cu_seqlens"]
        return [len(layer.input)] if len(ends) == 2 else ends.diff().tolist()

    def _heads(self, values: Tensor) -> Tensor:
        return values.view(len(values), self.attention.num_heads, -1)

    def _mean_of_patches(self, values: Tensor) -> Tensor:
        """Average over the patches of each token: [patches, c] -> [1, tokens, c]."""
        return values.view(1, -1, self.shape.patches_per_token, values.shape[-1]).mean(dim=2)


class InterpolatedTower(PackedTower):
    """The tower of Qwen3-VL: it has a table of learned positions, which is interpolated to the size of the picture."""

    def inputs(self, grids: Tensor) -> dict[str, Any]:
        visual = self.visual
        indices, weights = get_vision_interpolation_indices_and_weights(
            grids,
            num_grid_per_side=visual.num_grid_per_side,
            mode=visual.interpolation_mode,
            align_corners=visual.interpolation_align_corners,
            spatial_merge_size=visual.config.spatial_merge_size,
        )
        positions = {
            "interp_indices": to_device(indices, visual.device),
            "interp_weights": to_device(weights, visual.device),
        }
        return super().inputs(grids) | positions
