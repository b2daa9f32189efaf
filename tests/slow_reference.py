"""What pruning means, written the slow way: no cache, no batches, the whole sequence again for every token."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tops_engine.families import Family, Prompt
from tops_engine.messages import Message, read_conversation
from tops_engine.report import Answer


def model_inputs_embeds(family: Family, prompt: Prompt) -> Tensor:
    """The embeddings transformers' own forward makes of a prompt: [1, N, d]."""
    caught: dict[str, Tensor] = {}

    def catch(_module: Any, _args: Any, kwargs: dict[str, Any]) -> None:
        caught["embeds"] = kwargs["inputs_embeds"]

    handle = family.text_model.register_forward_pre_hook(catch, with_kwargs=True)
    with torch.inference_mode():
        family.model(input_ids=prompt.input_ids[None], **prompt.pixels)
    handle.remove()
    return caught["embeds"]


@torch.inference_mode()
def greedy_tokens(
    family: Family, messages: Sequence[Message], answer: Answer, positions: str, num_tokens: int
) -> list[int]:
    """The greedy continuation when exactly the tokens that ``answer`` reports are dropped."""
    prompt = family.prepare(read_conversation(messages))
    embeds = model_inputs_embeds(family, prompt)
    alive_from = _alive_per_layer(prompt, answer)
    read = _masked if positions == "original" else _gathered
    tokens: list[int] = []
    for _ in range(num_tokens):
        logits = read(family, embeds, alive_from)
        tokens.append(int(logits.argmax()))
        embedded = family.decoder.embed(torch.tensor([[tokens[-1]]]))
        embeds = torch.cat([embeds, embedded], dim=1)
    return tokens


def _alive_per_layer(prompt: Prompt, answer: Answer) -> dict[int, Tensor]:
    """From which layer on which prompt positions remain: bool [N]."""
    alive = {}
    for layer, kept in answer.token_map.stages:
        mask = torch.ones(len(prompt.input_ids), dtype=torch.bool)
        for span, indices in zip(prompt.spans, kept, strict=True):
            mask[span.positions] = False
            mask[span.positions[indices]] = True
        alive[layer] = mask
    return alive


def _causal(num_tokens: int) -> Tensor:
    return torch.ones(num_tokens, num_tokens, dtype=torch.bool).tril()[None, None]


def _additive(mask: Tensor) -> Tensor:
    """What every attention implementation reads alike."""
    return torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)


def _masked(family: Family, embeds: Tensor, alive_from: dict[int, Tensor]) -> Tensor:
    """Original positions: the full sequence goes through every layer, dropped tokens are hidden from attention."""
    model = family.text_model
    num_tokens = embeds.shape[1]
    rope = model.rotary_emb(embeds, torch.arange(num_tokens)[None])
    hidden, mask = embeds, _causal(num_tokens)
    for index, layer in enumerate(model.layers):
        if index in alive_from:
            visible = torch.ones(num_tokens, dtype=torch.bool)
            visible[: len(alive_from[index])] = alive_from[index]
            # A dropped token still sees itself, lest its own (unused) row be empty.
            mask = _causal(num_tokens) & (visible[None, None, None] | torch.eye(num_tokens, dtype=torch.bool))
        hidden = layer(hidden, attention_mask=_additive(mask), position_embeddings=rope)
    return family.model.lm_head(model.norm(hidden))[0, -1]


def _gathered(family: Family, embeds: Tensor, alive_from: dict[int, Tensor]) -> Tensor:
    """Contiguous positions: a new, shorter sequence from each stage on, numbered from 0."""
    model = family.text_model
    hidden, remaining = embeds, torch.arange(embeds.shape[1])
    for index, layer in enumerate(model.layers):
        if index in alive_from:
            alive = torch.ones(embeds.shape[1], dtype=torch.bool)
            alive[: len(alive_from[index])] = alive_from[index]
            stays = alive[remaining]
            hidden, remaining = hidden[:, stays], remaining[stays]
        rope = model.rotary_emb(hidden, torch.arange(hidden.shape[1])[None])
        hidden = layer(hidden, attention_mask=_additive(_causal(hidden.shape[1])), position_embeddings=rope)
    return family.model.lm_head(model.norm(hidden))[0, -1]
