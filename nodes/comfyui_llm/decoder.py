"""ComfyUI's decoder layers as the engine's stage II reads them: which layer attends how, and its queries and keys."""

import contextlib
import inspect
import sys
from typing import Any

import torch
from torch import Tensor
from transformers import Cache

from tops_engine.families.decoder import FULL, SLIDING, Decoder, Rope
from tops_engine.flops import DecoderShape
from tops_engine.generation.cache import KVCache


class _Captured(Exception):
    """Ends a layer's attention when its queries and keys are known."""


class CoreDecoder(Decoder):
    """The decoder of one prompt.

    The layers are not run from here: ComfyUI's own loop runs them. Token ids are row numbers of the prompt's
    embeddings, since ComfyUI gives embeddings and not the ids of the text.

    Parameters
    ----------
    model : ComfyUI's layers, norm and rotary embedding.
    embeds : [N, d], the embeddings of the whole prompt, pictures included.
    position_axes : coordinates of a position: 1, or 3 (time, row, column).
    """

    def __init__(self, model: Any, embeds: Tensor, position_axes: int) -> None:
        self.text_model = model
        self.embeds = embeds
        self.position_axes = position_axes
        self.shape = DecoderShape.from_config(model.config)
        self.embedding_multiplier = 1.0  # ComfyUI's embeddings are what the first layer reads
        self.layer_types = tuple(map(_layer_type, model.layers))
        self._freqs_take_dtype = "dtype" in inspect.signature(model.compute_freqs_cis).parameters

    @property
    def device(self) -> torch.device:
        return self.embeds.device

    @property
    def dtype(self) -> torch.dtype:
        return self.embeds.dtype

    def embed(self, input_ids: Tensor) -> Tensor:
        return self.embeds[input_ids]

    def attends_both_ways(self, _layer_type: str) -> bool:
        return bool(getattr(self.text_model.config, "vision_bidirectional", False))

    def new_states(self) -> Cache | None:
        return None

    def source_layer(self, layer: int) -> int:
        shared = getattr(self.text_model.config, "num_kv_shared_layers", 0)
        own = self.num_layers - shared
        if layer < own:
            return layer
        return max(number for number in range(own) if self.layer_types[number] == self.layer_types[layer])

    def sliding_window(self, layer_type: str) -> int | None:
        if layer_type != SLIDING:
            return None
        layer = self.text_model.layers[self.layer_types.index(SLIDING)]
        return int(layer.sliding_attention)

    def rope(self, hidden_states: Tensor, position_ids: Tensor, layer_type: str) -> Rope:
        # The coordinates themselves: ComfyUI computes the angles of all kinds of layers at once.
        return (position_ids.view(self.position_axes, -1).T[None],)

    def freqs(self, position_ids: Tensor) -> Any:
        """Return what ComfyUI's layers take of positions, int64 [axes, n]."""
        dtype = {"dtype": self.dtype} if self._freqs_take_dtype else {}
        return self.text_model.compute_freqs_cis(position_ids, self.device, **dtype)

    def scaling(self, layer: int) -> float:
        # Gemma 4 scales by the norm of the queries.
        attention = self.text_model.layers[layer].self_attn
        return 1.0 if self._rotates_alone(layer) else float(attention.head_dim) ** -0.5

    def queries(self, layer: int, hidden_states: Tensor, rope: Rope) -> Tensor:
        if self._rotates_alone(layer):
            attention = self.text_model.layers[layer].self_attn
            return self._gemma4_heads(layer, hidden_states, rope, attention.q_proj, attention.q_norm)
        return self._queries_and_keys(layer, hidden_states, rope)[0]

    def keys(self, layer: int, hidden_states: Tensor, rope: Rope) -> Tensor:
        if self._rotates_alone(layer):
            attention = self.text_model.layers[layer].self_attn
            return self._gemma4_heads(layer, hidden_states, rope, attention.k_proj, attention.k_norm)
        return self._queries_and_keys(layer, hidden_states, rope)[1]

    def _queries_and_keys(self, layer: int, hidden_states: Tensor, rope: Rope) -> tuple[Tensor, Tensor]:
        """Return the rotated queries and keys, each [heads, n, head_dim], as ComfyUI's attention computes them."""
        found: list[Tensor] = []

        def capture(queries: Tensor, keys: Tensor, *_: Any, **__: Any) -> Tensor:
            found.extend((queries[0], keys[0]))
            raise _Captured

        block = self.text_model.layers[layer]
        states = block.input_layernorm(hidden_states[None])
        with contextlib.suppress(_Captured):
            block.self_attn(states, freqs_cis=self._layer_freqs(layer, rope), optimized_attention=capture)
        queries, keys = found
        return queries, keys

    def _gemma4_heads(self, layer: int, hidden_states: Tensor, rope: Rope, project: Any, norm: Any) -> Tensor:
        block = self.text_model.layers[layer]
        rotate = sys.modules[type(block.self_attn).__module__]._apply_rotary_pos_emb
        projected = project(block.input_layernorm(hidden_states[None]))
        heads = norm(projected.view(1, len(hidden_states), -1, block.self_attn.head_dim)).transpose(1, 2)
        rotated: Tensor = rotate(heads, self._layer_freqs(layer, rope))[0]
        return rotated

    def _layer_freqs(self, layer: int, rope: Rope) -> Any:
        freqs = self.freqs(rope[0].T)
        if not isinstance(freqs, list):
            return freqs
        return freqs[1] if self.layer_types[layer] == SLIDING else freqs[0]

    def _rotates_alone(self, layer: int) -> bool:
        """Return whether the attention takes no function that computes it, as Gemma 4's does not."""
        attention = type(self.text_model.layers[layer].self_attn)
        return "optimized_attention" not in inspect.signature(attention.forward).parameters


def _layer_type(layer: Any) -> str:
    known = getattr(layer, "layer_type", None)
    if known is not None:
        return str(known)
    return SLIDING if getattr(layer, "sliding_attention", False) else FULL


class CoreKeys(KVCache):
    """The keys that ComfyUI's layers computed for the prompt, in place of the engine's cache.

    Attributes
    ----------
    slots : int64 [n], which of the tokens that entered the first layer remain.
    """

    def __init__(self, decoder: CoreDecoder, num_tokens: int) -> None:
        super().__init__(decoder)
        self._decoder = decoder
        self._known: dict[int, tuple[Tensor, Tensor]] = {}
        self.slots = torch.arange(num_tokens, device=decoder.device)

    def keep(self, layer: int, index: Tensor) -> None:
        """Note the tokens that remain from ``layer`` on, by their places [1, n] among those before."""
        self.slots = self.slots[index[0]]

    def restart(self) -> None:
        """Count from here on: the tokens that remain are those that enter the first layer."""
        self.slots = torch.arange(len(self.slots), device=self.slots.device)

    def store(self, layer: int, keys: Tensor) -> None:
        """Note the keys of a layer that ran: [1, heads, n, head_dim]."""
        self._known[layer] = keys, self.slots

    def keys(self, layer: int) -> Tensor:
        """Return the keys that layer ``layer`` reads, of the tokens that remain: [1, heads, n, head_dim]."""
        keys, _ = self._known[self._decoder.source_layer(layer)]
        return keys[:, :, self.places(layer)]

    def places(self, layer: int, slots: Tensor | None = None) -> Tensor:
        """Return the places of tokens among those whose keys layer ``layer`` reads: int64 [n].

        Parameters
        ----------
        slots : of the tokens; None for those that remain now.
        """
        _, read = self._known[self._decoder.source_layer(layer)]
        return torch.searchsorted(read, self.slots if slots is None else slots)

    def num_read(self, layer: int) -> int:
        """Return how many tokens' keys the source of layer ``layer`` holds."""
        return len(self._known[self._decoder.source_layer(layer)][1])

    def release(self) -> None:
        """Drop the keys; the places stay."""
        self._known = {layer: (slots, slots) for layer, (_, slots) in self._known.items()}
