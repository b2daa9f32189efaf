"""The decoder of a loaded model as the engine's own loop sees it.

:class:`Decoder` fits text models of the Llama kind. A family whose layers differ names a subclass, which says by layer:
the type (layers of one type share rotary embedding and mask), the rotary embedding, the mask rule, what the layer keeps
of the tokens that it has read, whose keys and values it reads, and what it gets of a token beside its hidden state.
Prefill, decoding, static buffers and prefix cache ask the decoder.
"""

import inspect
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache

from tops_engine.errors import UnsupportedModel
from tops_engine.flops import DecoderShape

#: What layers take of positions, each [B, n, ...]: cosines and sines, each [B, n, rotary_dim], and what a family adds.
Rope = tuple[Tensor, ...]
Heads = Literal["mean", "max"]

#: What a layer keeps of the tokens that it has read. Keys and values can be cut at any token, a state cannot.
Kept = Literal["keys and values", "recurrent state"]

# Types of layers, as transformers names them.
FULL, SLIDING = "full_attention", "sliding_attention"
RECURRENT = frozenset({"linear_attention", "conv"})

# Attention rows are computed in pieces of at most this many float32 values (256 MiB).
MAX_SCORES = 2**26


class Decoder:
    """Layers, norms, rotary embedding, token table and output head of a loaded model.

    Parameters
    ----------
    text_model : the inner text model (``LlamaModel`` ...), as under ``model.model.language_model``.
    lm_head : the output projection on the outer object.
    position_axes : coordinates of a position: 1, or 3 (time, row, column) for a multimodal rotary embedding (mRoPE).

    Raises
    ------
    UnsupportedModel
        If the mask rule needs more than the model's attention implementation can do.
    """

    #: Computes FLOPs and bytes from a config.
    shape_class: ClassVar[type[DecoderShape]] = DecoderShape

    #: Whether every token of the prompt, of text too, sees all of the prompt. Only layers that
    #: :meth:`attends_both_ways` names do so.
    prompt_attends_both_ways: ClassVar[bool] = False

    def __init__(self, text_model: nn.Module, lm_head: nn.Module, position_axes: int = 1) -> None:
        self.text_model: Any = text_model
        self.lm_head: Any = lm_head
        self.position_axes = position_axes
        self.shape = self.shape_class.from_config(self.text_model.config)
        #: What the text model multiplies embeddings of text and of pictures by (Granite).
        self.embedding_multiplier = float(getattr(self.text_model.config, "embedding_multiplier", 1.0))
        #: The type of each layer, as transformers names it.
        self.layer_types = _layer_types(self.text_model.config)
        #: The name under which the layers take a cache.
        self.cache_argument = _cache_argument(self.text_model)
        self._apply_rotary = sys.modules[type(text_model).__module__].apply_rotary_pos_emb
        if self.pictures_attend_both_ways and self.attention.startswith("flash"):
            raise UnsupportedModel(
                "Flash attention cannot let the tokens of a picture attend both ways, as this model needs; "
                "load it with attention=sdpa."
            )

    @property
    def num_layers(self) -> int:
        return self.shape.num_layers

    @property
    def num_logits(self) -> int:
        """Rows of the output head; it may be wider than the tokenizer."""
        return int(self.lm_head.weight.shape[0])

    @property
    def max_positions(self) -> int:
        return int(self.text_model.config.max_position_embeddings)

    @property
    def attention(self) -> str:
        """The attention implementation the model was loaded with: sdpa, eager or a flash variant."""
        return str(self.text_model.config._attn_implementation)

    @contextmanager
    def attending_by(self, attention: str) -> Iterator[None]:
        """Run layers with another attention, by its name in transformers' ``AttentionInterface``."""
        config = self.text_model.config
        usual, config._attn_implementation = config._attn_implementation, attention
        try:
            yield
        finally:
            config._attn_implementation = usual

    @property
    def device(self) -> torch.device:
        return self.text_model.embed_tokens.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.text_model.norm.weight.dtype

    def attends_both_ways(self, _layer_type: str) -> bool:
        """Return whether the tokens of a picture or frame attend to each other both ways in layers of a type."""
        return False

    @property
    def pictures_attend_both_ways(self) -> bool:
        """Whether they do in any layer, so that the mask is not causal there."""
        return any(map(self.attends_both_ways, self.layer_types))

    def kept(self, layer: int) -> Kept:
        """Return what layer ``layer`` keeps of the tokens that it has read."""
        return "recurrent state" if self.layer_types[layer] in RECURRENT else "keys and values"

    def source_layer(self, layer: int) -> int:
        """Return the layer whose keys and values layer ``layer`` reads: itself, or an earlier one that shares its own.

        Layers that read those of another one keep nothing of a token, and no layer behind them keeps anything.
        """
        return layer

    @property
    def num_writing_layers(self) -> int:
        """The number of layers, from the first on, that keep something of each token; the others read from them."""
        layers = range(self.num_layers)
        return next((layer for layer in layers if self.source_layer(layer) != layer), self.num_layers)

    @property
    def layers_stand_alone(self) -> bool:
        """Whether each layer needs nothing but the hidden states and what it keeps itself."""
        return self.num_writing_layers == self.num_layers

    def can_resume(self, num_layers: int) -> bool:
        """Return whether the first ``num_layers`` layers can go on from any token of a prompt that they have read."""
        return all(self.kept(layer) == "keys and values" for layer in range(num_layers))

    def new_states(self) -> Cache | None:
        """Return an empty store for the layers that keep a recurrent state; None where there are no such layers."""
        return None if self.can_resume(self.num_layers) else DynamicCache(config=self.text_model.config)

    def rating_layer(self, layer: int) -> int:
        """Return the first layer from ``layer`` on, or else the last before it, that computes attention."""
        attending = [number for number in range(self.num_layers) if self.kept(number) == "keys and values"]
        return next((number for number in attending if number >= layer), attending[-1])

    def sliding_window(self, layer_type: str) -> int | None:
        """Return how many tokens layers of a type look back, the asking token included; None for all."""
        window: int | None = getattr(self.text_model.config, "sliding_window", None)
        return window if layer_type == SLIDING else None

    def visible(self, layer_type: str, asking: Tensor, slots: Tensor, pictures: Tensor | None = None) -> Tensor:
        """Apply the mask rule of layers of a type.

        Parameters
        ----------
        asking : int64 [q], slots of the tokens that attend.
        slots : int64 [n], 0 to n - 1.
        pictures : int64 [..., n], the number of the picture or frame that the token in each slot belongs to, -1 for
            text; None where the rule does not need it.

        Returns
        -------
        bool [..., q, n], which slots each token attends to.
        """
        column = asking[:, None]
        visible = slots <= column
        if pictures is not None and self.attends_both_ways(layer_type):
            own, others = pictures[..., asking, None], pictures[..., None, :]
            visible = visible | ((own == others) & (others >= 0))
        window = self.sliding_window(layer_type)
        return visible if window is None else visible & (slots > column - window)

    def embed(self, input_ids: Tensor) -> Tensor:
        """Return token embeddings, as the first layer takes them: [...] -> [..., d]."""
        return self.text_model.embed_tokens(input_ids) * self.embedding_multiplier

    def per_layer_inputs(self, _input_ids: Tensor, _embedded: Tensor) -> Tensor | None:
        """Return what the layers get of each token beside its hidden state, None where they get nothing.

        Parameters
        ----------
        _input_ids : int64 [..., n], with -1 for visual tokens.
        _embedded : [..., n, d], the embedded tokens, visual ones included.

        Returns
        -------
        [..., n, layers, c].
        """
        return None

    def rope(self, hidden_states: Tensor, position_ids: Tensor, layer_type: str) -> Rope:
        """Compute the rotary embedding of layers of a type, in the dtype of ``hidden_states``.

        Parameters
        ----------
        position_ids : int64 [position_axes, B, n], or [B, n] for text, whose position is the same on all axes.
        """
        if self.position_axes == 1:
            return self.text_model.rotary_emb(hidden_states, position_ids.view(-1, position_ids.shape[-1]))
        return self.text_model.rotary_emb(hidden_states, position_ids.expand(3, *position_ids.shape[-2:]))

    def run_layer(
        self,
        layer: int,
        hidden_states: Tensor,
        rope: Rope,
        mask: Tensor | None,
        cache: Any,
        per_layer_inputs: Tensor | None = None,
    ) -> Tensor:
        """Run decoder layer ``layer`` on [B, n, d].

        ``cache`` gets what the layer keeps: a :class:`~tops_engine.generation.cache.KVCache`, or an object of one
        layer with its method ``update``. ``per_layer_inputs`` [B, n, layers, c] are those of :meth:`per_layer_inputs`.
        """
        if self.kept(layer) == "recurrent state":
            mask, cache = None, cache.states
        return self.text_model.layers[layer](
            hidden_states, attention_mask=mask, **{self.cache_argument: cache}, **self.position_arguments(rope)
        )

    def position_arguments(self, rope: Rope) -> dict[str, Any]:
        """Return the keyword arguments of a layer that :meth:`rope` gives."""
        return {"position_embeddings": rope}

    def final_norm(self, hidden_states: Tensor) -> Tensor:
        """Apply the norm behind the last layer: [..., d] -> [..., d]."""
        return self.text_model.norm(hidden_states)

    def logits(self, hidden_states: Tensor) -> Tensor:
        """Next-token scores from the last layer's output: [B, d] -> float32 [B, vocab]."""
        return self.lm_head(self.final_norm(hidden_states)).float()

    def attention_rows(
        self,
        layer: int,
        hidden_states: Tensor,
        rope: Rope,
        asking: Tensor,
        rated: Tensor,
        heads: Heads = "mean",
        keys: Tensor | None = None,
        pictures: Tensor | None = None,
    ) -> Tensor:
        """Compute the attention that some tokens pay others at layer ``layer``, from that layer's own projections.

        Parameters
        ----------
        hidden_states : [n, d], one sequence at the layer's input.
        rope : what :meth:`rope` gives of its positions, each [n, ...].
        asking, rated : int64 [t] and [v], whose rows and which columns of them.
        heads : their mean, or the largest of them element by element.
        keys : [kv_heads, n, head_dim], rotated, where the layer ran already.
        pictures : int64 [n], as :meth:`visible` takes it.

        Returns
        -------
        float32 [t, v], softmax over all tokens each asking token may see.
        """
        queries = self.queries(layer, hidden_states[asking], tuple(part[asking] for part in rope))
        keys = self.keys(layer, hidden_states, rope) if keys is None else keys
        keys = keys.float().repeat_interleave(len(queries) // len(keys), dim=0)
        attention = self.text_model.layers[layer].self_attn
        slots = torch.arange(hidden_states.shape[0], device=hidden_states.device)
        rows = []
        step = max(1, MAX_SCORES // (len(queries) * len(slots)))
        for start in range(0, len(asking), step):
            visible = self.visible(self.layer_types[layer], asking[start : start + step], slots, pictures)
            scores = queries[:, start : start + step].float() @ keys.transpose(1, 2) * self.scaling(layer)
            cap = getattr(attention, "attn_logit_softcapping", None)
            scores = scores if cap is None else (scores / cap).tanh() * cap
            scores = with_sinks(scores.masked_fill(~visible, float("-inf")), getattr(attention, "sinks", None))
            weights = scores.softmax(dim=-1)[:, :, rated]
            rows.append(weights.mean(dim=0) if heads == "mean" else weights.amax(dim=0))
        return torch.cat(rows)

    def first_products(self, asking: Tensor, features: Tensor) -> Tensor:
        """Compute the products of keys with a mean query in the first layer with attention, without positions.

        Parameters
        ----------
        asking : [t, d], embedded text tokens, whose queries are averaged.
        features : [n, d], projected visual tokens, whose keys are multiplied by that query.

        Returns
        -------
        float32 [n, heads]
        """
        layer = self.rating_layer(0)
        visual = features.to(asking.device, asking.dtype) * self.embedding_multiplier

        def at_position_zero(states: Tensor) -> Rope:
            positions = torch.zeros(self.position_axes, 1, len(states), dtype=torch.int64, device=states.device)
            return tuple(part[0] for part in self.rope(states[None], positions, self.layer_types[layer]))

        queries = self.queries(layer, asking, at_position_zero(asking)).float().mean(dim=1)
        keys = self.keys(layer, visual, at_position_zero(visual)).float()
        keys = keys.repeat_interleave(len(queries) // len(keys), dim=0)
        return (keys @ queries[:, :, None])[..., 0].T * self.scaling(layer)

    def scaling(self, layer: int) -> float:
        """Return the factor of the products of queries and keys of layer ``layer``."""
        return float(self.text_model.layers[layer].self_attn.scaling)

    def queries(self, layer: int, hidden_states: Tensor, rope: Rope) -> Tensor:
        """Compute the rotated queries of layer ``layer`` from its input [n, d]: [heads, n, head_dim]."""
        block = self.text_model.layers[layer]
        projected = block.self_attn.q_proj(block.input_layernorm(hidden_states))
        return self._rotated(projected, getattr(block.self_attn, "q_norm", None), rope)

    def keys(self, layer: int, hidden_states: Tensor, rope: Rope) -> Tensor:
        """Compute the rotated keys of layer ``layer`` from its input [n, d]: [kv_heads, n, head_dim]."""
        block = self.text_model.layers[layer]
        projected = block.self_attn.k_proj(block.input_layernorm(hidden_states))
        return self._rotated(projected, getattr(block.self_attn, "k_norm", None), rope)

    def _rotated(self, projected: Tensor, norm: nn.Module | None, rope: Rope) -> Tensor:
        heads = projected.view(1, projected.shape[0], -1, self.shape.head_dim)
        heads = (norm(heads) if norm is not None else heads).transpose(1, 2)
        cos, sin, *_ = rope
        return self._apply_rotary(heads, heads, cos[None], sin[None])[0][0]


def with_sinks(scores: Tensor, sinks: Tensor | None) -> Tensor:
    """Append the score of a head that goes to no token, as GPT-OSS has it, to the scores of the tokens.

    Parameters
    ----------
    scores : [..., heads, q, n].
    sinks : [heads], or None to append nothing.
    """
    if sinks is None:
        return scores
    return torch.cat([scores, sinks.to(scores.dtype)[:, None, None].expand(*scores.shape[:-1], 1)], dim=-1)


def _cache_argument(text_model: Any) -> str:
    # transformers 5.24 renamed it, and warns about the old name.
    parameters = inspect.signature(type(text_model.layers[0]).forward).parameters
    return "cache" if "cache" in parameters else "past_key_values"


def _layer_types(config: Any) -> tuple[str, ...]:
    types = getattr(config, "layer_types", None)
    if types is None:
        types = [FULL if getattr(config, "sliding_window", None) is None else SLIDING] * config.num_hidden_layers
    return tuple(types)
