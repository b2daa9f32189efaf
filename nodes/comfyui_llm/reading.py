"""Reads one prompt in ComfyUI's own loop over the layers, pruned by the engine's code, and then the answer.

ComfyUI computes everything. This module says which rows of its tensors go on: before the first layer, and at the layers
where a stage of the pruning begins; and at which position a token of the answer stands in each layer.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tops_engine.device.clock import Clock
from tops_engine.generation.batch_state import EmbeddedPrompt
from tops_engine.generation.planning import Group, numbering
from tops_engine.generation.prefill import Prefill, Segment
from tops_engine.methods import VisualTokens
from tops_engine.settings import Pruning

from .decoder import CoreDecoder, CoreKeys

Arguments = dict[str, Any]


class Reading:
    """A prompt while ComfyUI reads it, and its answer while ComfyUI writes it.

    Parameters
    ----------
    model : ComfyUI's decoder.
    pruning : what to keep.
    embeds : [1, N, d], the embedded prompt.
    positions : [axes, N], None for 0 to N - 1.
    spans : int64 [n] for each picture: its rows.
    tokens : the visual tokens of each picture.
    groups : the plan.
    clock : gets the time spent in ``selection``.

    Attributes
    ----------
    segments : layers that read the same tokens, as far as they ran.
    entered : int64 [n], the rows that enter the first layer.
    """

    def __init__(
        self,
        model: Any,
        pruning: Pruning,
        embeds: Tensor,
        positions: Tensor | None,
        spans: list[Tensor],
        tokens: Sequence[VisualTokens],
        groups: list[Group],
        clock: Clock,
    ) -> None:
        rows = torch.arange(embeds.shape[1])
        known = rows[None] if positions is None else positions.long().cpu()
        self._decoder = decoder = CoreDecoder(model, embeds[0], len(known))
        prompt = EmbeddedPrompt(rows, known, spans, list(tokens), groups)
        rule = numbering(decoder, pruning.resolved_positions)
        method = pruning.method_instance
        self._prefill = Prefill(decoder, [prompt], method, rule, clock, merge=pruning.merge)
        self._state = self._prefill.state
        self._state.cache = self._keys = CoreKeys(decoder, len(rows))
        self._clock = clock
        self._starts = sorted({0} | {stage.layer for group in groups for stage in group.stages})
        self.segments: list[Segment] = []
        #: What the layers of the present segment take of positions and masks; None until the first of them runs.
        self._segment_inputs: Arguments | None = None
        self._slots: list[Tensor] = []
        self._next: list[int] = []
        self._num_new = 0
        with clock("selection"):
            self._prefill.stages.prune(0)
        self.entered = self._keys.slots
        self._keys.restart()
        self._begin_segment(0)

    # Reading the prompt: called by the patches of the decoder and of its layers.

    def decoder_arguments(self, given: Arguments) -> Arguments:
        """Return the arguments of the decoder's call, with the rows that enter the first layer."""
        pruned = given | {"embeds": self._state.hidden, "position_ids": self.position_ids}
        # The engine adds these features itself, to the tokens that remain in each layer.
        pruned |= {name: None for name in ("deepstack_embeds", "visual_pos_masks") if name in given}
        if given.get("input_ids") is not None:
            pruned["input_ids"] = given["input_ids"][:, self.entered.to(given["input_ids"].device)]
        if given.get("embeds_info"):
            pruned["embeds_info"] = self.notes(given["embeds_info"])
        return pruned

    @property
    def position_ids(self) -> Tensor:
        """Positions of the tokens that remain: int64 [axes, n]."""
        return self._state.position_ids[:, 0]

    def notes(self, given: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return ComfyUI's notes on embeddings for the rows that entered: places, sizes and features of pictures."""
        images = iter(self._state.sequences[0].images)
        return [_note(info, next(images)) if info.get("type") == "image" else info for info in given]

    def before_layer(self, layer: int, given: Arguments) -> Arguments:
        """Return the arguments of a layer's call, with the rows that remain in it."""
        state = self._state
        state.hidden = given["x"]
        if layer and layer in self._starts:
            with self._clock("selection"):
                self._prefill.stages.prune(layer)
            self._begin_segment(layer)
        state.previous = state.hidden
        if self._decoder.kept(layer) == "keys and values":
            state.attention_layer, state.layer_input = layer, state.hidden
        pruned = given | {"x": state.hidden}
        if len(self.segments) == 1:
            return pruned
        slots = self._keys.slots
        if self._segment_inputs is None:
            mask = given.get("attention_mask")
            self._segment_inputs = {
                "freqs_cis": self._decoder.freqs(self.position_ids),
                "attention_mask": None if mask is None else mask[..., slots, :][..., slots],
            }
        pruned |= self._segment_inputs
        if given.get("per_layer_input") is not None:
            pruned["per_layer_input"] = given["per_layer_input"][:, slots]
        if given.get("shared_kv") is not None:
            pruned["shared_kv"] = _rows_of(given["shared_kv"], self._keys.places(layer))
        return pruned

    def after_layer(self, layer: int, result: tuple[Any, ...]) -> tuple[Any, ...]:
        """Note what a layer computed for the prompt, and add the features that the tower has for it."""
        self._state.hidden, stored, *shared = result
        if self._decoder.kept(layer) == "keys and values" and self._decoder.source_layer(layer) == layer:
            self._keys.store(layer, shared[0][0] if shared else stored[0][:, :, : stored[2]])
        self._prefill.add_deepstack(layer)
        return (self._state.hidden, stored, *shared)

    def end(self) -> None:
        """Drop what only the prompt needed, and note where the answer begins in each segment."""
        self._next = [int(segment.next_positions[0]) for segment in self.segments]
        self._keys.release()
        self._decoder.embeds = self._decoder.embeds[:0]
        del self._prefill, self._state

    # Writing the answer, one token at a time.

    @property
    def has_ended(self) -> bool:
        """Whether the prompt is read, so that what follows are tokens of the answer."""
        return bool(self._next)

    def token_arguments(self, given: Arguments) -> Arguments:
        """Return the arguments of the decoder's call for a token of the answer, with its position."""
        first = self._next[0]
        position = torch.tensor([[first + self._num_new]], device=self._decoder.device)
        self._num_new += 1
        self._freqs = [
            None if start == first else self._decoder.freqs(position + (start - first)) for start in self._next
        ]
        return given | {"position_ids": position}

    def token_layer_arguments(self, layer: int, given: Arguments) -> Arguments:
        """Return the arguments of a layer's call for a token of the answer, as it counts the tokens that remain."""
        number = sum(start <= layer for start in self._starts) - 1
        freqs = self._freqs[number]
        changed = given if freqs is None else given | {"freqs_cis": freqs}
        if given.get("shared_kv") is None or self._keys.num_read(layer) == len(self._slots[number]):
            return changed
        return changed | {"shared_kv": _rows_of(given["shared_kv"], self._readable(layer, number, given["shared_kv"]))}

    def _readable(self, layer: int, number: int, held: Sequence[Tensor]) -> Tensor:
        """Return the places, among the keys of an earlier layer, of the tokens that remain in layer ``layer``."""
        num_held, num_read = held[0].shape[2], self._keys.num_read(layer)
        gone = num_read + self._num_new - num_held  # a sliding layer drops the oldest
        kept = self._keys.places(layer, self._slots[number]) - gone
        new = torch.arange(num_read - gone, num_held, device=kept.device)
        return torch.cat([kept[kept >= 0], new])

    def _begin_segment(self, start: int) -> None:
        later = [bound for bound in self._starts if bound > start]
        self.segments.append(self._prefill.segment(start, min(later, default=self._decoder.num_layers)))
        self._slots.append(self._keys.slots)
        self._segment_inputs = None


def _rows_of(keys_and_values: Sequence[Tensor], places: Tensor) -> tuple[Tensor, ...]:
    return tuple(part[:, :, places] for part in keys_and_values)


def _note(info: dict[str, Any], image: Any) -> dict[str, Any]:
    """Return ComfyUI's note on a picture, for what remains of it."""
    changed = info | {"index": int(image.slots[0]), "size": len(image.slots)}
    extra = info.get("extra")
    if isinstance(extra, dict) and "deepstack" in extra:
        changed["extra"] = extra | {"deepstack": [features[image.kept] for features in extra["deepstack"]]}
    return changed
