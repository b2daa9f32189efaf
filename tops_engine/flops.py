"""Formulas for the FLOPs (one multiply-add is two) and the bytes of KV cache of a run.

The formulas count the matrix products, as ``torch.utils.flop_counter`` does: projections, the full attention matrix
(not its causal half), feed-forward layers, the patch embedding and the output head. They leave out normalisation,
activations, softmax, sampling and the attention that a method reads in the vision tower: a row for each tile where
there is a [CLS], otherwise a second query-key product of one layer (1 % of Qwen2.5-VL's tower at 1296 tokens).
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


@dataclass(frozen=True)
class DecoderShape:
    """Sizes of a decoder of the Llama kind (grouped-query attention, gated feed-forward).

    Of a mixture of experts ``intermediate_size`` counts what a token passes through: its experts and the shared one.

    Attributes
    ----------
    router_size : outputs of the router, and of the gate of the shared expert; 0 without experts.
    dense_layers : the layers of a mixture of experts that have a feed-forward part without experts.
    dense_size : its width.
    """

    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    router_size: int = 0
    dense_layers: frozenset[int] = frozenset()
    dense_size: int = 0

    @classmethod
    def from_config(cls, config: "PreTrainedConfig") -> "DecoderShape":
        heads = config.num_attention_heads
        num_experts = getattr(config, "num_experts", None) or 0
        shared = getattr(config, "shared_expert_intermediate_size", None) or 0
        return cls(
            num_layers=config.num_hidden_layers,
            hidden_size=config.hidden_size,
            num_heads=heads,
            num_kv_heads=getattr(config, "num_key_value_heads", None) or heads,
            head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
            intermediate_size=(
                config.num_experts_per_tok
                * (getattr(config, "moe_intermediate_size", None) or config.intermediate_size)
                + shared
                if num_experts
                else config.intermediate_size
            ),
            vocab_size=config.vocab_size,
            router_size=num_experts + bool(shared),
            dense_layers=_layers_without_experts(config) if num_experts else frozenset(),
            dense_size=getattr(config, "intermediate_size", 0),
        )

    def layer_flops(self, layer: int, num_queries: int, num_keys: int) -> int:
        """Count decoder layer ``layer`` for ``num_queries`` tokens that attend to ``num_keys``."""
        num_kv_heads, head_dim = self.key_shape(layer)
        query_size, kv_size = self.num_heads * head_dim, self.num_key_projections(layer) * num_kv_heads * head_dim
        projections = 2 * num_queries * self.hidden_size * (2 * query_size + kv_size)
        attention = 2 * 2 * num_queries * num_keys * query_size
        return projections + attention + self.feed_forward_flops(layer, num_queries)

    def key_shape(self, _layer: int) -> tuple[int, int]:
        """Return the number of heads of a layer's keys and values, and the size of each."""
        return self.num_kv_heads, self.head_dim

    def num_key_projections(self, _layer: int) -> int:
        """Return how many projections make the keys and values of a layer."""
        return 2

    def embedding_flops(self, _num_tokens: int) -> int:
        """Count the products before the first layer."""
        return 0

    def feed_forward_flops(self, layer: int, num_tokens: int) -> int:
        """Count the feed-forward part of a layer, and the router of its experts."""
        if layer in self.dense_layers:
            return 2 * num_tokens * self.hidden_size * 3 * self.dense_size
        return 2 * num_tokens * self.hidden_size * (3 * self.intermediate_size + self.router_size)

    def prefill_flops(self, tokens_per_layer: Sequence[int], known_per_layer: Sequence[int] | None = None) -> int:
        """Return the FLOPs of a prompt, of which layer i sees ``tokens_per_layer[i]`` tokens, and of the first logits.

        ``known_per_layer[i]`` of them went through layer i for an earlier prompt.
        """
        known_per_layer = known_per_layer or [0] * len(tokens_per_layer)
        counts = enumerate(zip(tokens_per_layer, known_per_layer, strict=True))
        layers = (self.layer_flops(layer, count - known, count) for layer, (count, known) in counts)
        return sum(layers) + self._head_flops()

    def decode_flops(self, tokens_per_layer: Sequence[int], num_new_tokens: int) -> int:
        """Feeding ``num_new_tokens`` one by one after that prompt, each with its logits."""
        steps = (
            sum(self.layer_flops(layer, 1, count + step) for layer, count in enumerate(tokens_per_layer))
            + self._head_flops()
            for step in range(1, num_new_tokens + 1)
        )
        return sum(steps) + self.embedding_flops(num_new_tokens)

    def rating_flops(self, layer: int, num_rows: int, num_tokens: int, keys_known: bool = False) -> int:
        """Attention rows at a layer: their queries, everybody's keys where not known, and the rows themselves."""
        num_kv_heads, head_dim = self.key_shape(layer)
        query_size, kv_size = self.num_heads * head_dim, num_kv_heads * head_dim
        num_keys = 0 if keys_known else num_tokens
        projections = 2 * self.hidden_size * (num_rows * query_size + num_keys * kv_size)
        return projections + 2 * num_rows * num_tokens * query_size

    def kv_cache_bytes(self, tokens_per_layer: Sequence[int], num_new_tokens: int, bytes_per_value: int) -> int:
        """Return the bytes of the keys and values of the prompt and of the new tokens in all layers."""
        slots = sum(tokens_per_layer) + self.num_layers * num_new_tokens
        return 2 * slots * self.num_kv_heads * self.head_dim * bytes_per_value

    def _head_flops(self) -> int:
        return 2 * self.hidden_size * self.vocab_size


@dataclass(frozen=True)
class VisionShape:
    """Sizes of a CLIP-like vision tower and of the linear layers behind it.

    Attributes
    ----------
    num_tokens, num_patches : of a picture or tile; they differ by [CLS].
    patch_values : colour values of a patch.
    num_projected : rows of a picture or tile that are projected.
    projector_widths : of a projected row before, between and after the projector's linear layers.
    """

    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_tokens: int
    num_patches: int
    patch_values: int
    num_projected: int
    projector_widths: tuple[int, ...]

    @classmethod
    def from_config(
        cls, vision: "PreTrainedConfig", has_cls: bool, num_projected: int, projector_widths: tuple[int, ...]
    ) -> "VisionShape":
        num_patches = patches_per_side(vision) ** 2
        return cls(
            num_layers=vision.num_hidden_layers,
            hidden_size=vision.hidden_size,
            intermediate_size=vision.intermediate_size,
            num_tokens=num_patches + has_cls,
            num_patches=num_patches,
            patch_values=vision.num_channels * _side(vision.patch_size) ** 2,
            num_projected=num_projected,
            projector_widths=projector_widths,
        )

    def flops(self, num_tiles: int) -> int:
        """Encoding and projecting ``num_tiles`` pictures or tiles."""
        return num_tiles * (self.tile_flops() + self.projector_flops)

    def tile_flops(self, cut: tuple[int, int] | None = None) -> int:
        """Encoding a tile; ``cut`` is a layer and how many patches it and the layers behind it read."""
        first, kept = cut or (self.num_layers, 0)
        embedding = 2 * self.num_patches * self.patch_values * self.hidden_size
        num_cls = self.num_tokens - self.num_patches
        behind = (self.num_layers - first) * self._layer_flops(num_cls + kept)
        return embedding + first * self._layer_flops(self.num_tokens) + behind

    @property
    def projector_flops(self) -> int:
        """Projecting the rows of a tile."""
        return sum(2 * self.num_projected * a * b for a, b in itertools.pairwise(self.projector_widths))

    def _layer_flops(self, tokens: int) -> int:
        width = self.hidden_size
        return 2 * tokens * width * (4 * width + 2 * self.intermediate_size) + 2 * 2 * tokens * tokens * width


@dataclass(frozen=True)
class PackedVisionShape:
    """Sizes of a Qwen-VL vision tower: patches of all pictures in one row, attention within a frame or a window of it,
    and mergers that make one token of a block of patches.
    """

    num_layers: int
    full_layers: tuple[int, ...]
    hidden_size: int
    feed_forward_weights: int
    patch_values: int
    patches_per_token: int
    text_hidden_size: int
    merged_layers: tuple[int, ...]

    @classmethod
    def from_config(cls, vision: "PreTrainedConfig") -> "PackedVisionShape":
        # In Qwen2-VL's config the hidden size is that of the text model.
        width = getattr(vision, "embed_dim", None) or vision.hidden_size
        intermediate = getattr(vision, "intermediate_size", None) or width * vision.mlp_ratio
        full_layers = getattr(vision, "fullatt_block_indexes", None)
        return cls(
            num_layers=vision.depth,
            full_layers=tuple(range(vision.depth) if full_layers is None else full_layers),
            hidden_size=width,
            # The feed-forward layers of the family that has windows are gated.
            feed_forward_weights=(2 if full_layers is None else 3) * width * intermediate,
            patch_values=vision.in_channels * vision.temporal_patch_size * vision.patch_size**2,
            patches_per_token=vision.spatial_merge_size**2,
            text_hidden_size=getattr(vision, "out_hidden_size", None) or vision.hidden_size,
            merged_layers=(*getattr(vision, "deepstack_visual_indexes", ()), vision.depth - 1),
        )

    @property
    def merged_size(self) -> int:
        """Width of the patches of a token, one after the other."""
        return self.patches_per_token * self.hidden_size

    def flops(self, frames: Sequence[int], windows: Sequence[int]) -> int:
        """Encoding and merging.

        Parameters
        ----------
        frames, windows : patches in each, which the layers with full and with window attention look at together.
        """
        return self.part_flops(frames, windows, 0, self.num_layers)

    def part_flops(self, frames: Sequence[int], windows: Sequence[int], start: int, end: int | None = None) -> int:
        """Layers [start, end) with the mergers behind them; the first layer with the embedding of the patches."""
        patches, width = sum(frames), self.hidden_size
        layers = range(self.num_layers)[start:end]
        embedding = 2 * self.patch_values * width if start == 0 else 0
        per_patch = embedding + len(layers) * 2 * (4 * width**2 + self.feed_forward_weights)
        full, windowed = (2 * 2 * width * sum(count**2 for count in counts) for counts in (frames, windows))
        attention = sum(full if layer in self.full_layers else windowed for layer in layers)
        num_merged = sum(layer in layers for layer in self.merged_layers) * (patches // self.patches_per_token)
        return patches * per_patch + attention + num_merged * self.merger_flops()

    def merger_flops(self) -> int:
        """Making one token of its patches, after one layer."""
        return 2 * self.merged_size * (self.merged_size + self.text_hidden_size)


def _layers_without_experts(config: "PreTrainedConfig") -> frozenset[int]:
    """Return the layers that Qwen3-MoE makes without experts, as its config says."""
    named = getattr(config, "mlp_only_layers", None) or ()
    step = getattr(config, "decoder_sparse_step", None) or 1
    return frozenset(layer for layer in range(config.num_hidden_layers) if layer in named or (layer + 1) % step)


def patches_per_side(vision: "PreTrainedConfig") -> int:
    """Return the patches along a side of the square that a vision tower sees."""
    return _side(vision.image_size) // _side(vision.patch_size)


def _side(size: int | Sequence[int]) -> int:
    return size if isinstance(size, int) else size[0]
