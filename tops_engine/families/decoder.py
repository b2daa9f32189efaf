"""Our view of a transformers text model (Llama, Mistral, Qwen2 and their kind): what the engine's own loop calls."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tops_engine.flops import DecoderShape

Rope = tuple[Tensor, Tensor]
Heads = Literal["mean", "max"]

# Attention rows are computed in pieces of at most this many float32 values (256 MiB).
MAX_SCORES = 2**26


class Decoder:
    """Layers, norms, rotary embedding, token table and output head of a loaded model.

    Parameters
    ----------
    text_model : the inner text model (``LlamaModel`` ...), as under ``model.model.language_model``.
    lm_head : the output projection on the outer object.
    position_axes : coordinates of a position: 1, or 3 (time, row, column) for a multimodal rotary embedding (mRoPE).
    """

    def __init__(self, text_model: nn.Module, lm_head: nn.Module, position_axes: int = 1) -> None:
        self.text_model: Any = text_model
        self.lm_head: Any = lm_head
        self.position_axes = position_axes
        self.shape = DecoderShape.from_config(self.text_model.config)
        self._apply_rotary = sys.modules[type(text_model).__module__].apply_rotary_pos_emb

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

    def sliding_window(self, layer: int) -> int | None:
        """How many tokens layer ``layer`` looks back, None for all."""
        window: int | None = getattr(self.text_model.config, "sliding_window", None)
        layer_types = getattr(self.text_model.config, "layer_types", None)
        if layer_types is not None and layer_types[layer] != "sliding_attention":
            return None
        return window

    def embed(self, input_ids: Tensor) -> Tensor:
        """Token embeddings: [...] -> [..., d]."""
        return self.text_model.embed_tokens(input_ids)

    def rope(self, hidden_states: Tensor, position_ids: Tensor) -> Rope:
        """Cosines and sines of positions, each [B, n, head_dim] in the dtype of ``hidden_states``.

        Parameters
        ----------
        position_ids : int64 [position_axes, B, n], or [B, n] for text, whose position is the same on all axes.
        """
        if self.position_axes == 1:
            return self.text_model.rotary_emb(hidden_states, position_ids.view(-1, position_ids.shape[-1]))
        return self.text_model.rotary_emb(hidden_states, position_ids.expand(3, *position_ids.shape[-2:]))

    def run_layer(self, layer: int, hidden_states: Tensor, rope: Rope, mask: Tensor | None, cache: Any) -> Tensor:
        """Decoder layer ``layer`` on [B, n, d]; stores keys and values in ``cache``."""
        return self.text_model.layers[layer](
            hidden_states, attention_mask=mask, position_embeddings=rope, past_key_values=cache
        )

    def final_norm(self, hidden_states: Tensor) -> Tensor:
        """The norm behind the last layer: [..., d] -> [..., d]."""
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
    ) -> Tensor:
        """The attention that some tokens pay others at layer ``layer``, from that layer's own projections.

        Parameters
        ----------
        hidden_states : [n, d], one sequence at the layer's input.
        rope : cosines and sines of its positions, each [n, head_dim].
        asking, rated : int64 [t] and [v], whose rows and which columns of them.
        heads : their mean, or the largest of them element by element.
        keys : [kv_heads, n, head_dim], rotated, where the layer ran already.

        Returns
        -------
        float32 [t, v], softmax over all tokens each asking token may see.
        """
        block = self.text_model.layers[layer]
        attention = block.self_attn
        normed = block.input_layernorm(hidden_states)
        queries = self._heads(attention.q_proj(normed[asking]), getattr(attention, "q_norm", None))
        cos, sin = rope
        queries, _ = self._apply_rotary(queries, queries, cos[None, asking], sin[None, asking])
        if keys is None:
            projected = self._heads(attention.k_proj(normed), getattr(attention, "k_norm", None))
            keys = self._apply_rotary(projected, projected, cos[None], sin[None])[0][0]
        keys = keys.float().repeat_interleave(self.shape.num_heads // self.shape.num_kv_heads, dim=0)
        slots = torch.arange(hidden_states.shape[0], device=hidden_states.device)
        window = self.sliding_window(layer)
        rows = []
        step = max(1, MAX_SCORES // (self.shape.num_heads * len(slots)))
        for start in range(0, len(asking), step):
            piece = asking[start : start + step, None]
            scores = queries[0, :, start : start + step].float() @ keys.transpose(1, 2) * attention.scaling
            hidden = slots > piece
            if window is not None:
                hidden |= slots <= piece - window
            weights = scores.masked_fill(hidden, float("-inf")).softmax(dim=-1)[:, :, rated]
            rows.append(weights.mean(dim=0) if heads == "mean" else weights.amax(dim=0))
        return torch.cat(rows)

    def _heads(self, projected: Tensor, norm: nn.Module | None) -> Tensor:
        heads = projected.view(1, projected.shape[0], -1, self.shape.head_dim)
        return (norm(heads) if norm is not None else heads).transpose(1, 2)
