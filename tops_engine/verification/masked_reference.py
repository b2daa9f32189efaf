"""Define pruning by a slow reference: no cache, no batches, and the whole sequence is computed again for every token.

Sliding windows count the kept tokens. A layer with a recurrent state runs over exactly the tokens that are kept in it,
from an empty state. A layer that reads the keys and values of an earlier layer reads those of the tokens that are kept
in itself, as the earlier layer made them.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tops_engine.answers.report import Answer
from tops_engine.conversation.messages import Message, read_conversation
from tops_engine.families import Family, Prompt
from tops_engine.verification.transformers_model import forward_inputs

#: Types of layers that let the tokens of a picture attend to each other in both directions, by model type.
BOTH_WAYS = {
    "gemma3_text": ("full_attention", "sliding_attention"),
    "gemma4_text": ("sliding_attention",),
}


@dataclass
class TextInputs:
    """The inputs that transformers' own forward gives the text model.

    ``embeds`` [1, N, d]; ``positions`` [1, N], or [3, 1, N] of an mRoPE model; ``added`` [1, N, d] for each of the
    first layers: the features added to the hidden states after it (deepstack); ``pictures`` int64 [N]: the number of
    the picture or frame that a token belongs to, -1 for text, if its tokens attend to each other in both directions;
    ``per_layer`` [1, N, layers, c]: what each layer gets beside the hidden states, if anything.
    """

    embeds: Tensor
    positions: Tensor
    added: list[Tensor]
    pictures: Tensor
    per_layer: Tensor | None = None

    def append(self, family: Family, token: int) -> None:
        """Append a text token."""
        token_ids = torch.tensor([[token]], device=self.embeds.device)
        embedded = family.decoder.embed(token_ids)
        if self.per_layer is not None:
            model, config = family.text_model, family.model.config
            if token in (config.image_token_id, config.video_token_id, config.audio_token_id):
                # Gemma 4 reads a placeholder that it wrote itself as padding.
                token_ids = torch.full_like(token_ids, model.config.pad_token_id)
            added = model.project_per_layer_inputs(embedded, model.get_per_layer_inputs(token_ids))
            self.per_layer = torch.cat([self.per_layer, added], dim=1)
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
    # Granite multiplies them in front of the first layer.
    multiplier = getattr(family.text_model.config, "embedding_multiplier", 1.0)
    embeds, positions = caught["inputs_embeds"] * multiplier, caught["position_ids"]
    if positions is None:
        positions = torch.arange(embeds.shape[1], device=embeds.device)[None]
        positions = positions if family.position_axes == 1 else positions.expand(3, 1, -1)
    added = []
    for rows in caught.get("deepstack_visual_embeds") or ():
        added.append(torch.zeros_like(embeds))
        added[-1][caught["visual_pos_masks"]] = rows
    per_layer = caught.get("per_layer_inputs")
    if per_layer is not None:
        per_layer = family.text_model.project_per_layer_inputs(embeds, per_layer)
    return TextInputs(embeds, positions, added, _pictures(family, prompt).to(embeds.device), per_layer)


def _pictures(family: Family, prompt: Prompt) -> Tensor:
    """Number the runs of visual tokens: text stands between pictures, and between the frames of a video."""
    if family.model.config.model_type == "paligemma":
        # The whole prompt is seen as one picture.
        return torch.zeros_like(prompt.input_ids)
    is_visual = torch.zeros_like(prompt.input_ids)
    config = family.text_model.config
    # Gemma 4 says so in its config; the entry of the same name of Gemma 3 is about text.
    both_ways = config.model_type != "gemma4_text" or config.use_bidirectional_attention == "vision"
    if config.model_type in ("gemma3_text", "gemma4_text") and both_ways:
        for span in prompt.spans:
            is_visual[span.positions] = 1
    begins = is_visual.diff(prepend=torch.zeros(1, dtype=torch.int64)) == 1
    return torch.where(is_visual.bool(), begins.cumsum(0), -1)


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
    read = _reader(family, positions)
    tokens: list[int] = []
    for _ in range(num_tokens):
        logits = read(family, inputs, alive_from)
        tokens.append(int(logits.argmax()))
        inputs.append(family, tokens[-1])
    return tokens


@torch.inference_mode()
def answer_logits(
    family: Family, messages: Sequence[Message], answer: Answer, positions: str, tokens: Sequence[int]
) -> Tensor:
    """Return the logits before each given token of an answer, under the pruning that ``answer`` reports: [q, vocab]."""
    prompt = family.prepare(read_conversation(messages))
    inputs = model_text_inputs(family, prompt)
    alive_from = _alive_per_layer(prompt, answer, family.decoder.device)
    read = _reader(family, positions)
    rows = []
    for token in tokens:
        rows.append(read(family, inputs, alive_from).flatten())
        inputs.append(family, token)
    return torch.stack(rows)


Reader = Callable[[Family, TextInputs, dict[int, Tensor]], Tensor]


def _reader(family: Family, positions: str) -> Reader:
    """Return the function that reads a sequence. 3-D coordinates and positions of shared keys are never renumbered."""
    shares_keys = getattr(family.text_model.config, "num_kv_shared_layers", 0)
    return _masked if positions == "original" or family.position_axes == 3 or shares_keys else _gathered


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


def _run_layer(
    model: Any,
    index: int,
    hidden: Tensor,
    positions: Tensor,
    pictures: Tensor,
    alive: Tensor,
    **options: Any,
) -> Tensor:
    """Run layer ``index`` on [1, N, d]; tokens that are not ``alive`` (bool [N]) are hidden from the others."""
    # Configs without types have a window in all layers or in none.
    layer_type = getattr(model.config, "layer_types", ["sliding_attention"] * len(model.layers))[index]
    if layer_type in ("linear_attention", "conv"):
        rope = model.rotary_emb(hidden[:, alive], positions[..., alive])
        hidden = hidden.clone()
        hidden[:, alive] = model.layers[index](hidden[:, alive], position_embeddings=rope)
        return hidden
    by_layer = "layer_type" in inspect.signature(model.rotary_emb.forward).parameters
    rope = model.rotary_emb(hidden, positions, *([layer_type] if by_layer else []))
    slots = torch.arange(len(alive), device=alive.device)
    mask = slots <= slots[:, None]
    if layer_type in BOTH_WAYS.get(model.config.model_type, ()):
        mask = mask | ((pictures == pictures[:, None]) & (pictures >= 0))
    window = getattr(model.config, "sliding_window", None)
    if window is not None and layer_type == "sliding_attention":
        rank = alive.cumsum(0)
        mask &= rank > rank[:, None] - window
    if model.config.model_type in ("gemma", "gemma2"):
        # PaliGemma's prompt sees all of itself, also beyond the window.
        mask = mask | ((pictures == pictures[:, None]) & (pictures >= 0))
    # A dropped token still attends to itself, because an empty row, though unused, gives NaN.
    mask = (mask & alive) | torch.eye(len(alive), dtype=torch.bool, device=alive.device)
    # All attention implementations read an additive mask in the same way.
    additive = torch.zeros_like(mask, dtype=hidden.dtype).masked_fill(~mask, torch.finfo(hidden.dtype).min)
    layer = model.layers[index]
    # Some layers scale their queries by position.
    if "position_ids" in inspect.signature(layer.self_attn.forward).parameters:
        options["position_ids"] = positions
    return layer(hidden, attention_mask=additive[None, None], position_embeddings=rope, **options)


def _masked(family: Family, inputs: TextInputs, alive_from: dict[int, Tensor]) -> Tensor:
    """Keep original positions: run the full sequence through every layer and hide dropped tokens from attention."""
    model = family.text_model
    num_tokens = inputs.embeds.shape[1]
    everyone = torch.ones(num_tokens, dtype=torch.bool, device=inputs.embeds.device)
    hidden, alive = inputs.embeds, everyone
    shared: dict[str, tuple[Tensor, Tensor]] = {}
    for index in range(len(model.layers)):
        if index in alive_from:
            alive = everyone.clone()
            alive[: len(alive_from[index])] = alive_from[index]
        options = _options(model, index, inputs.per_layer, shared)
        hidden = _run_layer(model, index, hidden, inputs.positions, inputs.pictures, alive, **options)
        if index < len(inputs.added):
            hidden = hidden + inputs.added[index]
    return _logits(family, hidden)


def _options(
    model: Any, index: int, per_layer: Tensor | None, shared: dict[str, tuple[Tensor, Tensor]]
) -> dict[str, Any]:
    """Return what layers of Gemma 4 get beside the others: its own input, and the keys and values that layers share."""
    if model.config.model_type != "gemma4_text":
        return {}
    per_layer_input = None if per_layer is None else per_layer[:, :, index]
    return {"per_layer_input": per_layer_input, "shared_kv_states": shared}


def _logits(family: Family, hidden: Tensor) -> Tensor:
    norm = getattr(family.text_model, "embedding_norm", None) or family.text_model.norm
    scores = family.model.lm_head(norm(hidden))[0, -1]
    cap = getattr(family.text_model.config, "final_logit_softcapping", None)
    return scores if cap is None else cap * torch.tanh(scores / cap)


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
        per_layer = None if inputs.per_layer is None else inputs.per_layer[:, remaining]
        options = _options(model, index, per_layer, {})
        hidden = _run_layer(model, index, hidden, positions, inputs.pictures[remaining], everyone, **options)
    return _logits(family, hidden)
