"""Sizes of Gemma 4's decoder, by layer."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tops_engine.flops import DecoderShape

SLIDING = "sliding_attention"


@dataclass(frozen=True)
class Gemma4Shape(DecoderShape):
    """Sizes of a decoder whose global layers have heads of their own size.

    Attributes
    ----------
    sources : the layer whose keys and values each layer reads.
    key_shapes : heads of the keys of each layer, and their size.
    values_are_keys : whether each layer has one projection for keys and values.
    intermediate_sizes : of the feed-forward part of each layer; what a token passes through of its experts included.
    per_layer_size : width of the input that a layer gets beside the hidden states; 0 without.
    """

    sources: tuple[int, ...] = ()
    key_shapes: tuple[tuple[int, int], ...] = ()
    values_are_keys: tuple[bool, ...] = ()
    intermediate_sizes: tuple[int, ...] = ()
    per_layer_size: int = 0

    @classmethod
    def from_config(cls, config: Any) -> "Gemma4Shape":
        layers = [config.per_layer_config[layer] for layer in range(config.num_hidden_layers)]
        sources = source_layers(config)
        experts = config.top_k_experts * config.moe_intermediate_size if config.enable_moe_block else 0
        return cls(
            num_layers=config.num_hidden_layers,
            hidden_size=config.hidden_size,
            num_heads=config.num_attention_heads,
            num_kv_heads=layers[0].num_key_value_heads,
            head_dim=layers[0].head_dim,
            intermediate_size=config.intermediate_size + experts,
            vocab_size=config.vocab_size,
            router_size=config.num_experts if config.enable_moe_block else 0,
            sources=sources,
            key_shapes=tuple((layer.num_key_value_heads, layer.head_dim) for layer in layers),
            values_are_keys=tuple(config.attention_k_eq_v and kind != SLIDING for kind in config.layer_types),
            intermediate_sizes=tuple(
                config.intermediate_size * (1 + (config.use_double_wide_mlp and source != layer)) + experts
                for layer, source in enumerate(sources)
            ),
            per_layer_size=config.hidden_size_per_layer_input or 0,
        )

    def key_shape(self, layer: int) -> tuple[int, int]:
        return self.key_shapes[layer]

    def num_key_projections(self, layer: int) -> int:
        if self.sources[layer] != layer:
            return 0
        return 1 if self.values_are_keys[layer] else 2

    def embedding_flops(self, num_tokens: int) -> int:
        return 2 * num_tokens * self.hidden_size * self.num_layers * self.per_layer_size

    def feed_forward_flops(self, layer: int, num_tokens: int) -> int:
        weights = 3 * self.intermediate_sizes[layer] + self.router_size + 2 * self.per_layer_size
        return 2 * num_tokens * self.hidden_size * weights

    def kv_cache_bytes(self, tokens_per_layer: Sequence[int], num_new_tokens: int, bytes_per_value: int) -> int:
        """Return the bytes of the layers' own keys and values, and of the copies that stages make of shared ones."""
        held = {(source, tokens_per_layer[layer]) for layer, source in enumerate(self.sources)}
        sizes = ((self.key_shapes[source], tokens + num_new_tokens) for source, tokens in held)
        return 2 * bytes_per_value * sum(heads * head_dim * slots for (heads, head_dim), slots in sizes)


def source_layers(config: Any) -> tuple[int, ...]:
    """Return the layer whose keys and values each layer reads: the last ones read those of the last layer of their type
    that makes its own.
    """
    num_own = config.num_hidden_layers - config.num_kv_shared_layers
    own = config.layer_types[:num_own]
    return tuple(
        layer if layer < num_own else num_own - 1 - own[::-1].index(layer_type)
        for layer, layer_type in enumerate(config.layer_types)
    )
