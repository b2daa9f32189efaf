"""Our view of a transformers text model (Llama, Mistral, Qwen2 and their kind): what the engine's own loop calls."""

import sys
from typing import Any

import torch
from torch import Tensor, nn

from tops_engine.flops import DecoderShape

Rope = tuple[Tensor, Tensor]

# The attention rows of stage II are computed in pieces of at most this many float32 values (256 MiB).
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
        self.lm_head = lm_head
        self.position_axes = position_axes
        self.shape = DecoderShape.from_config(self.text_model.config)
        self._apply_rotary = sys.modules[type(text_model).__module__].apply_rotary_pos_emb

    @property
    def num_layers(self) -> int:
        return self.shape.num_layers

    @property
    def max_positions(self) -> int:
        return int(self.text_model.config.max_position_embeddings)

    @property
    def attention(self) -> str:
        """The attention implementation the model was loaded with: sdpa, eager or a flash variant."""
        return str(self.text_model.config._attn_implementation)

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

    def logits(self, hidden_states: Tensor) -> Tensor:
        """Next-token scores from the last layer's output: [B, d] -> float32 [B, vocab]."""
        return self.lm_head(self.text_model.norm(hidden_states)).float()

    def text_attention(
        self, layer: int, hidden_states: Tensor, rope: Rope, text_slots: Tensor, visual_slots: Tensor
    ) -> Tensor:
        """The attention rows of some text tokens at layer ``layer``, from that layer's own projections.

        Parameters
        ----------
        hidden_states : [n, d], one sequence at the layer's input.
        rope : cosines and sines of its positions, each [n, head_dim].
        text_slots, visual_slots : int64 [t] and [v], which tokens ask and which are rated.

        Returns
        -------
        float32 [t, v], softmax over all tokens each text token may see, mean over heads.
        """
        block = self.text_model.layers[layer]
        attention = block.self_attn
        normed = block.input_layernorm(hidden_states)
        queries = self._heads(attention.q_proj(normed[text_slots]), getattr(attention, "q_norm", None))
        keys = self._heads(attention.k_proj(normed), getattr(attention, "k_norm", None))
        cos, sin = rope
        queries, _ = self._apply_rotary(queries, queries, cos[None, text_slots], sin[None, text_slots])
        keys, _ = self._apply_rotary(keys, keys, cos[None], sin[None])
        keys = keys[0].float().repeat_interleave(self.shape.num_heads // self.shape.num_kv_heads, dim=0)
        slots = torch.arange(hidden_states.shape[0], device=hidden_states.device)
        window = self.sliding_window(layer)
        rows = []
        step = max(1, MAX_SCORES // (self.shape.num_heads * len(slots)))
        for piece in range(0, len(text_slots), step):
            asking = text_slots[piece : piece + step]
            scores = queries[0, :, piece : piece + step].float() @ keys.transpose(1, 2) * attention.scaling
            hidden = slots > asking[:, None]
            if window is not None:
                hidden |= slots <= asking[:, None] - window
            weights = scores.masked_fill(hidden, float("-inf")).softmax(dim=-1)
            rows.append(weights[:, :, visual_slots].mean(dim=0))
        return torch.cat(rows)

    def _heads(self, projected: Tensor, norm: nn.Module | None) -> Tensor:
        heads = projected.view(1, projected.shape[0], -1, self.shape.head_dim)
        return (norm(heads) if norm is not None else heads).transpose(1, 2)
