"""TransPrune: github.com/liaolea/TransPrune, compute_transf_weight and transprune_rank_drop of LLaVA.

One step after three layers, on random states of a prompt of 5 tokens, the picture, and 7 tokens. Projections and rotary
embedding change nothing.
"""

import types
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.official.comparison import NUM_TOKENS, compare, function_of
from tops_engine.families.parts.vision_signals import Call
from tops_engine.generation.transitions import token_transitions
from tops_engine.media.layout import VisualLayout, grid_boxes
from tops_engine.methods import LayerTokens
from tops_engine.methods.tokens import unavailable
from tops_engine.methods.transprune import TransPrune

FILE = "llava/model/modeling_llama_transprune.py"
BEFORE, AFTER, WIDTH, HEADS = 5, 7, 8, 2
LENGTH = BEFORE + NUM_TOKENS + AFTER


def inputs(seed: int) -> tuple[Tensor, Tensor]:
    """Return hidden states [1, n, d], and input and output of two parts of three layers: [3, 2, 2, 1, n, d]."""
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(1, LENGTH, WIDTH, generator=generator)
    return states, torch.randn(3, 2, 2, 1, LENGTH, WIDTH, generator=generator)


def causal_mask(mask: Tensor, shape: tuple[int, int], *_: object, **_options: object) -> Tensor:
    return torch.full((1, 1, shape[1], shape[1]), float("-inf")).triu(1)


def official(checkout: Path, seed: int, count: int) -> list[int]:
    states, parts = inputs(seed)
    change = partial(function_of(checkout, FILE, "LlamaDecoderLayer_TransPrune.compute_transf_weight"), None)
    same = nn.Identity()
    attention = types.SimpleNamespace(
        num_heads=HEADS,
        num_key_value_heads=HEADS,
        head_dim=WIDTH // HEADS,
        q_proj=same,
        k_proj=same,
        v_proj=same,
        rotary_emb=lambda *_, **_options: (None, None),
    )
    model = types.SimpleNamespace(
        config=types.SimpleNamespace(tokenizer_model_max_length=LENGTH),
        image_tokens=[NUM_TOKENS],
        image_token_ratio_list=[1, (count + 0.5) / NUM_TOKENS],
        image_token_posi=[BEFORE],
        prompt_len=[BEFORE + AFTER],
        layers=[types.SimpleNamespace(self_attn=attention, input_layernorm=same)],
        transf_weight_list=[change(*layer[0]) + change(*layer[1]) for layer in parts],
    )
    drop = function_of(
        checkout,
        FILE,
        "LlamaModel.transprune_rank_drop",
        nn=nn,
        IGNORE_INDEX=-100,
        apply_rotary_pos_emb=lambda queries, keys, *_: (queries, keys),
        _prepare_4d_causal_attention_mask=causal_mask,
    )
    _, _, left, _ = drop(model, 0, 0, states, None, None, None)
    visual = left[0, BEFORE : BEFORE + count]
    kept: list[int] = (visual[:, None] == states[0, None, BEFORE:-AFTER]).all(dim=2).nonzero()[:, 1].tolist()
    return kept


def ours(seed: int, count: int) -> list[int]:
    states, parts = inputs(seed)
    calls = [[Call(before, after, arguments=(before,)) for before, after in layer] for layer in parts]
    changes = torch.stack([token_transitions(layer, [LENGTH]) for layer in calls]).sum(dim=0)[0]
    heads = states[0].view(LENGTH, HEADS, -1).transpose(0, 1)
    scores = heads @ heads.mT / (WIDTH // HEADS) ** 0.5 + causal_mask(states, (1, LENGTH))[0]
    rows = scores.softmax(dim=-1).mean(dim=0)[-AFTER:, BEFORE:-AFTER]
    missing = unavailable("this signal")
    image = LayerTokens(
        states[0, BEFORE:-AFTER],
        torch.arange(NUM_TOKENS),
        VisualLayout(grid_boxes(24, 24), torch.zeros(NUM_TOKENS).long(), ((24, 24),)),
        lambda *_, **_options: rows,
        missing,
        missing,
        missing,
        missing,
        lambda: changes[BEFORE:-AFTER],
    )
    (selection,) = TransPrune().select_at_layer([image], [count])
    kept: list[int] = selection.indices.tolist()
    return kept


if __name__ == "__main__":
    compare(__doc__, official, ours)
