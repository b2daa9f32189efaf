"""What pruning means, written the slow way: no cache, no batches, the whole sequence again for every token."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tops_engine.answers.report import Answer
from tops_engine.conversation.messages import Message, read_conversation
from tops_engine.families import Family, Prompt


@dataclass
class TextInputs:
    """What transformers' own forward gives the text model.

    ``embeds`` [1, N, d]; ``positions`` [1, N], or [3, 1, N] of an mRoPE model; ``added`` [1, N, d] for each of the
    first layers: what is added to the hidden states after it (deepstack).
    """

    embeds: Tensor
    positions: Tensor
    added: list[Tensor]

    def append(self, embedded: Tensor) -> None:
        """One more text token, [1, 1, d]."""
        self.embeds = torch.cat([self.embeds, embedded], dim=1)
        self.positions = torch.cat([self.positions, self.positions[..., -1:] + 1], dim=-1)
        self.added = [torch.cat([added, torch.zeros_like(embedded)], dim=1) for added in self.added]


def model_inputs_embeds(family: Family, prompt: Prompt) -> Tensor:
    """The embeddings transformers' own forward makes of a prompt: [1, N, d]."""
    return model_text_inputs(family, prompt).embeds


def model_text_inputs(family: Family, prompt: Prompt) -> TextInputs:
    caught: dict[str, Any] = {}

    def catch(_module: Any, _args: Any, kwargs: dict[str, Any]) -> None:
        caught.update(kwargs)

    handle = family.text_model.register_forward_pre_hook(catch, with_kwargs=True)
    with torch.inference_mode():
        family.model(input_ids=prompt.input_ids[None], **prompt.pixels)
    handle.remove()
    embeds, positions = caught["inputs_embeds"], caught["position_ids"]
    if positions is None:
        positions = torch.arange(embeds.shape[1])[None]
        positions = positions if family.position_axes == 1 else positions.expand(3, 1, -1)
    added = []
    for rows in caught.get("deepstack_visual_embeds") or ():
        added.append(torch.zeros_like(embeds))
        added[-1][caught["visual_pos_masks"]] = rows
    return TextInputs(embeds, positions, added)


@torch.inference_mode()
def greedy_tokens(
    family: Family,
    messages: Sequence[Message],
    answer: Answer,
    positions: str,
    num_tokens: int,
    embeds: Tensor | None = None,
) -> list[int]:
    """The greedy continuation when exactly the tokens that ``answer`` reports are dropped.

    ``embeds`` [1, N, d] of the prompt, for what transformers' own forward cannot embed.
    """
    prompt = family.prepare(read_conversation(messages))
    if embeds is None:
        inputs = model_text_inputs(family, prompt)
    else:
        inputs = TextInputs(embeds, torch.arange(embeds.shape[1])[None], [])
    alive_from = _alive_per_layer(prompt, answer)
    # 3-D coordinates are never renumbered.
    read = _masked if positions == "original" or family.position_axes == 3 else _gathered
    tokens: list[int] = []
    for _ in range(num_tokens):
        logits = read(family, inputs, alive_from)
        tokens.append(int(logits.argmax()))
        inputs.append(family.decoder.embed(torch.tensor([[tokens[-1]]])))
    return tokens


@torch.inference_mode()
def answer_logits(
    family: Family, messages: Sequence[Message], answer: Answer, positions: str, tokens: Sequence[int]
) -> Tensor:
    """The logits before each of given tokens of an answer, under the pruning that ``answer`` reports: [q, vocab]."""
    prompt = family.prepare(read_conversation(messages))
    inputs = model_text_inputs(family, prompt)
    alive_from = _alive_per_layer(prompt, answer)
    read = _masked if positions == "original" or family.position_axes == 3 else _gathered
    rows = []
    for token in tokens:
        rows.append(read(family, inputs, alive_from).flatten())
        inputs.append(family.decoder.embed(torch.tensor([[token]])))
    return torch.stack(rows)


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


def _masked(family: Family, inputs: TextInputs, alive_from: dict[int, Tensor]) -> Tensor:
    """Original positions: the full sequence goes through every layer, dropped tokens are hidden from attention."""
    model = family.text_model
    num_tokens = inputs.embeds.shape[1]
    rope = model.rotary_emb(inputs.embeds, inputs.positions)
    hidden, mask = inputs.embeds, _causal(num_tokens)
    for index, layer in enumerate(model.layers):
        if index in alive_from:
            visible = torch.ones(num_tokens, dtype=torch.bool)
            visible[: len(alive_from[index])] = alive_from[index]
            # A dropped token still sees itself, lest its own (unused) row be empty.
            mask = _causal(num_tokens) & (visible[None, None, None] | torch.eye(num_tokens, dtype=torch.bool))
        hidden = layer(hidden, attention_mask=_additive(mask), position_embeddings=rope)
        if index < len(inputs.added):
            hidden = hidden + inputs.added[index]
    return family.model.lm_head(model.norm(hidden))[0, -1]


def _gathered(family: Family, inputs: TextInputs, alive_from: dict[int, Tensor]) -> Tensor:
    """Contiguous positions: a new, shorter sequence from each stage on, numbered from 0."""
    model = family.text_model
    hidden, remaining = inputs.embeds, torch.arange(inputs.embeds.shape[1])
    for index, layer in enumerate(model.layers):
        if index in alive_from:
            alive = torch.ones(inputs.embeds.shape[1], dtype=torch.bool)
            alive[: len(alive_from[index])] = alive_from[index]
            stays = alive[remaining]
            hidden, remaining = hidden[:, stays], remaining[stays]
        rope = model.rotary_emb(hidden, torch.arange(hidden.shape[1])[None])
        hidden = layer(hidden, attention_mask=_additive(_causal(hidden.shape[1])), position_embeddings=rope)
    return family.model.lm_head(model.norm(hidden))[0, -1]
