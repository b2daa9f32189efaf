"""Qwen3.5: the vision tower of Qwen3-VL over gated linear attention, with full attention in every fourth layer."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor
from transformers import Qwen3VLProcessor

from tops_engine.families.decoder import RECURRENT, Decoder, Rope
from tops_engine.families.parts.packed_frames import bounds_of_a_frame, text_with_times
from tops_engine.families.parts.packed_tower import InterpolatedTower, PackedTower
from tops_engine.families.parts.processors import without_video
from tops_engine.families.qwen2_vl import Qwen2VL
from tops_engine.flops import DecoderShape
from tops_engine.grounding.formats import QWEN3, Format
from tops_engine.media.bounds import Bounds
from tops_engine.media.layout import VisualLayout
from tops_engine.media.videos import Video

# Tokens that the linear attention reads at once (transformers' ``torch_chunk_gated_delta_rule``).
CHUNK = 64


@dataclass(frozen=True)
class HybridShape(DecoderShape):
    """Sizes of a stack with gated delta-rule layers (linear attention); full attention has a gate for each query.

    Counted for a linear layer are its projections, the convolution, and the products with the recurrent state: in
    chunks of 64 tokens while the prompt is read (without the triangular system of a chunk), and for one token at a time
    the three products of the delta rule.
    """

    layer_types: tuple[str, ...] = ()
    num_value_heads: int = 0
    key_head_dim: int = 0
    value_head_dim: int = 0
    key_size: int = 0
    kernel_size: int = 0

    @classmethod
    def from_config(cls, config: Any) -> "HybridShape":
        return cls(
            **vars(DecoderShape.from_config(config)),
            layer_types=tuple(config.layer_types),
            num_value_heads=config.linear_num_value_heads,
            key_head_dim=config.linear_key_head_dim,
            value_head_dim=config.linear_value_head_dim,
            key_size=config.linear_num_key_heads * config.linear_key_head_dim,
            kernel_size=config.linear_conv_kernel_dim,
        )

    @property
    def value_size(self) -> int:
        return self.num_value_heads * self.value_head_dim

    @property
    def convolved_size(self) -> int:
        """Channels of the convolution: queries, keys and values."""
        return 2 * self.key_size + self.value_size

    def layer_flops(self, layer: int, num_queries: int, num_keys: int) -> int:
        if self.layer_types[layer] not in RECURRENT:
            gate = 2 * num_queries * self.hidden_size * self.num_heads * self.head_dim
            return super().layer_flops(layer, num_queries, num_keys) + gate
        outputs = self.convolved_size + 2 * self.value_size + 2 * self.num_value_heads
        projections = 2 * num_queries * self.hidden_size * outputs
        convolution = 2 * num_queries * self.convolved_size * self.kernel_size
        delta_rule = self.num_value_heads * self._state_flops(num_queries)
        return projections + convolution + delta_rule + self.feed_forward_flops(layer, num_queries)

    def rating_flops(self, layer: int, num_rows: int, num_tokens: int, keys_known: bool = False) -> int:
        gate = 2 * self.hidden_size * num_rows * self.num_heads * self.head_dim
        return super().rating_flops(layer, num_rows, num_tokens, keys_known) + gate

    def kv_cache_bytes(self, tokens_per_layer: Sequence[int], num_new_tokens: int, bytes_per_value: int) -> int:
        """Return the bytes of the full layers' keys and values and of the linear layers' states, which do not grow."""
        slots, states = 0, 0
        for layer_type, tokens in zip(self.layer_types, tokens_per_layer, strict=True):
            if layer_type not in RECURRENT:
                slots += tokens + num_new_tokens
            else:
                # Transformers keeps the recurrent state in float32.
                states += 4 * self.num_value_heads * self.key_head_dim * self.value_head_dim
                states += bytes_per_value * self.convolved_size * self.kernel_size
        return 2 * slots * self.num_kv_heads * self.head_dim * bytes_per_value + states

    def _state_flops(self, num_queries: int) -> int:
        """Count what a head does with its state."""
        key, value = self.key_head_dim, self.value_head_dim
        if num_queries == 1:
            return 3 * 2 * key * value
        chunks = -(-num_queries // CHUNK)
        inside = 2 * CHUNK * CHUNK * (2 * key + value)
        return chunks * (inside + 3 * 2 * CHUNK * key * value)


class HybridDecoder(Decoder):
    """Linear layers keep a recurrent state, which a prefix cannot be cut from; full layers rate in their place."""

    shape_class = HybridShape

    def queries(self, layer: int, hidden_states: Tensor, rope: Rope) -> Tensor:
        block = self.text_model.layers[layer]
        projected = block.self_attn.q_proj(block.input_layernorm(hidden_states))
        # Behind the query of each head stands the gate of its output.
        queries = projected.view(len(projected), -1, 2 * self.shape.head_dim)[..., : self.shape.head_dim]
        return self._rotated(queries, block.self_attn.q_norm, rope)


class Qwen35(Qwen2VL):
    """``Qwen3_5ForConditionalGeneration`` and ``Qwen3_5MoeForConditionalGeneration``: Qwen/Qwen3.5-9B, -35B-A3B and the
    other sizes.

    A layer of linear attention reads only the tokens that remain in it, so its state holds nothing of the dropped ones.
    A method that asks for attention at a linear layer gets that of the next full layer.
    """

    model_types = ("qwen3_5", "qwen3_5_moe")
    checkpoints: ClassVar[dict[str, tuple[str, ...]]] = {
        "qwen3_5": tuple(f"Qwen/Qwen3.5-{size}" for size in ("0.8B", "2B", "4B", "9B", "27B")),
        "qwen3_5_moe": tuple(f"Qwen/Qwen3.5-{size}" for size in ("35B-A3B", "122B-A10B", "397B-A17B")),
    }
    processor_class = without_video(Qwen3VLProcessor)
    grounding: ClassVar[dict[str, Format]] = dict.fromkeys(model_types, QWEN3)
    decoder_class = HybridDecoder

    def build_tower(self) -> PackedTower:
        return InterpolatedTower(self.visual)

    def frame_bounds(self, video: Video) -> Bounds:
        return bounds_of_a_frame(self.processor.video_bounds, len(video.frames), self.visual.config.temporal_patch_size)

    def video_text(self, video: Video, layout: VisualLayout) -> str:
        rows, columns = layout.grids[0]
        return text_with_times(self.tokenizer, self.model.config, rows * columns, video.timestamps)
