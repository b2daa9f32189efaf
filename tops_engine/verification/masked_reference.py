"""Define pruning by a slow reference: no cache, no batches, and the whole sequence is computed again for every token.

Sliding windows count the kept tokens. A layer with a recurrent state runs over exactly the tokens that are kept in it,
from an empty state.
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tops_engine.answers.report import Answer
from tops_engine.conversation.messages import Message, read_conversation
from tops_engine.families import Family, Prompt
from tops_engine.verification.transformers_model import forward_inputs

#: Model types that let the tokens of a picture attend to each other in both directions.
BOTH_WAYS = ("gemma3",)


@dataclass
class TextInputs:
    """The inputs that transformers' own forward gives the text model.

    ``embeds`` [1, N, d]; ``positions`` [1, N], or [3, 1, N] of an mRoPE model; ``added`` [1, N, d] for each of the
    first layers: the features added to the hidden states after it (deepstack); ``pictures`` int64 [N]: the number of
    the picture that a token belongs to, -1 for text, if a picture's tokens attend to each other in both directions.
    """

    embeds: Tensor
    positions: Tensor
    added: list[Tensor]
    pictures: Tensor

    def append(self, embedded: Tensor) -> None:
        """Append a text token, [1, 1, d]."""
        self.embeds = torch.cat([self.embeds, embedded], dim=1)
        self.positions = torch.cat([self.positions, self.positions[..., -1:] + 1], dim=-1)
        self.added = [torch.cat([added, torch.zeros_like(embedded)], dim=1) for added in self.added]
        self.pictures = torch.cat([self.pictures, self.pictures.new_tensor([-1])])


def model_inputs_embeds(family: Family, prompt: Prompt) -> Tensor:
    """Return the embeddings that transformers' own forward computes for a prompt: [1, N, d]."""
    return model_text_inputs(family, prompt).embeds


def model_text_inputs(family: Family, prompt: Prompt) -> TextInputs:
    caught: dict[str, Any] = {}

    def catch(_module: Any, _args: Any, kwargs: dict[str, Any]) -> None:
        caught.update(kwargs)

    handle = family.text_model.register_forward_pre_hook(catch, with_kwargs=True)
    with torch.inference_mode():
        family.model(**forward_inputs(family, prompt))
    handle.remove()
    embeds, positions = caught["inputs_embeds"], caught["position_ids"]
    if positions is None:
        positions = torch.arange(embeds.shape[1], device=embeds.device)[None]
        positions = positions if family.position_axes == 1 else positions.expand(3, 1, -1)
    added = []
    for rows in caught.get("deepstack_visual_embeds") or ():
        added.append(torch.zeros_like(embeds))
        added[-1][caught["visual_pos_masks"]] = rows
    return TextInputs(embeds, positions, added, _pictures(family, prompt).to(embeds.device))


def _pictures(family: Family, prompt: Prompt) -> Tensor:
    pictures = torch.full_like(prompt.input_ids, -1)
    if family.model.config.model_type in BOTH_WAYS:
        for number, span in enumerate(prompt.spans):
            pictures[span.positions] = number
    return pictures


@torch.inference_mode()
def greedy_tokens(
    family: Family,
    messages: Sequence[Message],
    answer: Answer,
    positions: str,
    num_tokens: int,
    embeds: Tensor | None = None,
) -> list[int]:
    """Return the greedy continuation when exactly the tokens that ``answer`` reports are dropped.

    ``embeds`` [1, N, d] replaces the prompt's embeddings if transformers' own forward cannot compute them.
    """
    prompt = family.prepare(read_conversation(messages))
    if embeds is None:
        inputs = model_text_inputs(family, prompt)
    else:
        inputs = TextInputs(embeds, torch.arange(embeds.shape[1])[None], [], _pictures(family, prompt))
    alive_from = _alive_per_layer(prompt, answer, family.decoder.device)
    # 3-D coordinates are never renumbered.
    read = _masked if positions == "original" or family.position_axes == 3 else _gathered
    tokens: list[int] = []
    for _ in range(num_tokens):
        logits = read(family, inputs, alive_from)
        tokens.append(int(logits.argmax()))
        inputs.append(family.decoder.embed(torch.tensor([[tokens[-1]]], device=family.decoder.device)))
    return tokens


@torch.inference_mode()
def answer_logits(
    family: Family, messages: Sequence[Message], answer: Answer, positions: str, tokens: Sequence[int]
) -> Tensor:
    """Return the logits before each given token of an answer, under the pruning that ``answer`` reports: [q, vocab]."""
    prompt = family.prepare(read_conversation(messages))
    inputs = model_text_inputs(family, prompt)
    alive_from = _alive_per_layer(prompt, answer, family.decoder.device)
    read = _masked if positions == "original" or family.position_axes == 3 else _gathered
    rows = []
    for token in tokens:
        rows.append(read(family, inputs, alive_from).flatten())
        inputs.append(family.decoder.embed(torch.tensor([[token]], device=family.decoder.device)))
    return torch.stack(rows)


def _alive_per_layer(prompt: Prompt, answer: Answer, device: torch.device) -> dict[int, Tensor]:
    """Return for each start layer the kept prompt positions: bool [N]."""
    alive = {}
    for layer, kept in answer.token_map.stages:
        mask = torch.ones(len(prompt.input_ids), dtype=torch.bool)
        for span, indices in zip(prompt.spans, kept, strict=True):
            mask[span.positions] = False
            mask[span.positions[indices.cpu()]] = True
        alive[layer] = mask.to(device)
    return alive


def _run_layer(model: Any, index: int, hidden: Tensor, positions: Tensor, pictures: Tensor, alive: Tensor) -> Tensor:
    """Run layer ``index`` on [1, N, d]; tokens that are not ``alive`` (bool [N]) are hidden from the others."""
    # Configs without types have a window in all layers or in none.
    layer_type = getattr(model.config, "layer_types", ["sliding_attention"] * len(model.layers))[index]
    if layer_type == "linear_attention":
        rope = model.rotary_emb(hidden[:, alive], positions[..., alive])
        hidden = hidden.clone()
        hidden[:, alive] = model.layers[index](hidden[:, alive], position_embeddings=rope)
        return hidden
    by_layer = "layer_type" in inspect.signature(model.rotary_emb.forward).parameters
    rope = model.rotary_emb(hidden, positions, *([layer_type] if by_layer else []))
    slots = torch.arange(len(alive), device=alive.device)
    mask = (slots <= slots[:, None]) | ((pictures == pictures[:, None]) & (pictures >= 0))
    window = getattr(model.config, "sliding_window", None)
    if window is not None and layer_type == "sliding_attention":
        rank = alive.cumsum(0)
        mask &= rank > rank[:, None] - window
    # A dropped token still attends to itself, because an empty row, though unused, gives NaN.
    mask = (mask & alive) | torch.eye(len(alive), dtype=torch.bool, device=alive.device)
    # All attention implementations read an additive mask in the same way.
    additive = torch.zeros_like(mask, dtype=hidden.dtype).masked_fill(~mask, torch.finfo(hidden.dtype).min)
    layer = model.layers[index]
    # Some layers scale their queries by position.
    scaled = "position_ids" in inspect.signature(layer.self_attn.forward).parameters
    options = {"position_ids": positions} if scaled else {}
    return layer(hidden, attention_mask=additive[None, None], position_embeddings=rope, **options)


def _masked(family: Family, inputs: TextInputs, alive_from: dict[int, Tensor]) -> Tensor:
    """Keep original positions: run the full sequence through every layer and hide dropped tokens from attention."""
    model = family.text_model
    num_tokens = inputs.embeds.shape[1]
    everyone = torch.ones(num_tokens, dtype=torch.bool, device=inputs.embeds.device)
    hidden, alive = inputs.embeds, everyone
    for index in range(len(model.layers)):
        if index in alive_from:
            alive = everyone.clone()
            alive[: len(alive_from[index])] = alive_from[index]
        hidden = _run_layer(model, index, hidden, inputs.positions, inputs.pictures, alive)
        if index < len(inputs.added):
            hidden = hidden + inputs.added[index]
    return family.model.lm_head(model.norm(hidden))[0, -1]


def _gathered(family: Family, inputs: TextInputs, alive_from: dict[int, Tensor]) -> Tensor:
    """Use contiguous positions: continue from each stage with a shorter sequence whose positions start at 0."""
    model = family.text_model
    device = inputs.embeds.device
    hidden, remaining = inputs.embeds, torch.arange(inputs.embeds.shape[1], device=device)
    for index in range(len(model.layers)):
        if index in alive_from:
            alive = torch.ones(inputs.embeds.shape[1], dtype=torch.bool, device=device)
            alive[: len(alive_from[index])] = alive_from[index]
            stays = alive[remaining]
            hidden, remaining = hidden[:, stays], remaining[stays]
        positions = torch.arange(len(remaining), device=device)[None]
        everyone = torch.ones(len(remaining), dtype=torch.bool, device=device)
        hidden = _run_layer(model, index, hidden, positions, inputs.pictures[remaining], everyone)
    return family.model.lm_head(model.norm(hidden))[0, -1]
