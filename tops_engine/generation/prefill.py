"""Prefill: the engine's own loop over the decoder layers, which drops visual tokens between them."""

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from tops_engine.device.clock import Clock
from tops_engine.families import Decoder
from tops_engine.families.decoder import Rope
from tops_engine.generation.batch_state import BatchState, EmbeddedPrompt
from tops_engine.generation.cache import KVCache, decode_mask, prefill_mask
from tops_engine.generation.prefix_cache import LayerStates, Prefix
from tops_engine.generation.recorded_prefill import RecordedPrompts, SegmentShape
from tops_engine.generation.rectifying import check_rectifiable, rectified_mask
from tops_engine.generation.stages import Stages
from tops_engine.generation.transitions import token_transitions, watched_layer
from tops_engine.methods import Method, Positions, Rectify, Selection


@dataclass(frozen=True)
class Segment:
    """Consecutive layers that read the same tokens.

    Attributes
    ----------
    start, end : layers [start, end).
    lengths : prompt tokens of each sequence.
    next_positions : int64 [B], the position id of the first new token.
    kept : for each sequence, for each image: int64 [k], which of its tokens remain, ascending.
    rating_layer : the layer whose attention chose them; None where no attention between tokens did.
    """

    start: int
    end: int
    lengths: list[int]
    next_positions: Tensor
    kept: list[list[Tensor]]
    rating_layer: int | None = None


@dataclass
class Prefilled:
    """The result of a prefill: the cache, the first logits (float32 [B, vocab]) and the segments.

    ``selection_flops``, of each sequence: rating and choosing visual tokens. ``stage_one``, of each image of each
    sequence: what was chosen before the first layer, None where nothing was dropped. ``first_states`` of a single
    sequence: how it stood when the first segment of layers had run.
    """

    cache: KVCache
    logits: Tensor
    segments: list[Segment]
    selection_flops: list[int]
    stage_one: list[list[Selection | None]]
    first_states: LayerStates | None


class Prefill:
    """The prefill of one batch.

    Parameters
    ----------
    decoder : of the loaded model.
    prompts : the batch; prompts may differ in length and number of images.
    method : how tokens are chosen.
    positions : how the remaining ones are numbered; ``original`` where positions are 3-D.
    clock : gets the time spent in ``selection``.
    merge : whether tokens dropped before the language model are averaged with the kept ones.
    rectify : what makes up for the attention that these tokens leave.
    prefix : the beginning of a single prompt that was read before: it runs only behind the first segment of layers.
    recorded : recorded layers for prompts whose shapes come back; None runs all layers as they are.
    """

    def __init__(
        self,
        decoder: Decoder,
        prompts: Sequence[EmbeddedPrompt],
        method: Method,
        positions: Positions,
        clock: Clock,
        prefix: Prefix | None = None,
        merge: bool = False,
        rectify: Rectify = "none",
        recorded: RecordedPrompts | None = None,
    ) -> None:
        self.decoder = decoder
        self.recorded = recorded
        self.clock = clock
        self.rectifies = rectify != "none"
        if self.rectifies:
            check_rectifiable(decoder)
        self.prefix = prefix
        self.watched = method.watched_layers(decoder.num_layers)
        self.state = BatchState(decoder, prompts)
        self.stages = Stages(self.state, method, positions, merge, self.rectifies)
        if prefix is not None:
            known = prefix.read.selections[: prefix.num_images]
            for image, selection in zip(self.state.sequences[0].images, known, strict=False):
                image.selection, image.known = selection, True

    def run(self) -> Prefilled:
        """Run all layers; return the cache, the logits after the last prompt token, and what was kept where."""
        starts = {0} | {layer for group in self.state.groups for layer in group.stages}
        bounds = [*sorted(starts), self.decoder.num_layers]
        # Layers behind these keep nothing of a token, so that behind the last stage only the last token runs there.
        num_writing = self.decoder.num_writing_layers
        segments = []
        stage_one: list[list[Selection | None]] = []
        first_states: LayerStates | None = None
        # What the beginning of such a prompt computes depends on its end, so no other prompt shares it.
        both_ways = self.decoder.prompt_attends_both_ways
        for start, end in itertools.pairwise(bounds):
            with self.clock("selection"):
                self.stages.prune(start)
            last = end == self.decoder.num_layers
            self._run_layers(start, max(start, num_writing) if last else end, self.prefix if start == 0 else None)
            if start == 0:
                stage_one = [[image.selection for image in sequence.images] for sequence in self.state.sequences]
                if len(self.state.sequences) == 1 and self.decoder.can_resume(end) and not both_ways:
                    kept = self.state.cache.keys_and_values(end)
                    first_states = LayerStates(*kept, self.state.layer_input, self.state.hidden)
            segments.append(self.segment(start, end))
        logits = self.decoder.logits(self._last_tokens(max(segments[-1].start, num_writing)))
        return Prefilled(self.state.cache, logits, segments, self.state.selection_flops, stage_one, first_states)

    def _run_layers(self, start: int, end: int, prefix: Prefix | None) -> None:
        """Run layers [start, end); with a prefix only for the tokens behind it."""
        if prefix is None and self._run_recorded(start, end):
            return
        num_known = 0
        if prefix is not None:
            num_known = prefix.num_tokens
            self.state.cache.load(prefix.read.states.keys, prefix.read.states.values, num_known)
            self.state.hidden = self.state.hidden[:, num_known:]
        side_inputs = self.state.per_layer_inputs
        if side_inputs is not None:
            side_inputs = side_inputs[:, num_known:]
        pictures = self.state.picture_numbers()
        inputs = {}
        # Where attention is rectified, the first layer has a mask of its own.
        for layer_type, first in {(self.decoder.layer_types[layer], layer == 0) for layer in range(start, end)}:
            rope = tuple(part[:, num_known:] for part in self.state.rope(layer_type))
            if self.rectifies and any(image.sizes is not None for image in self.state.images):
                mask: Tensor | None = rectified_mask(self.state, layer_type, first)
            else:
                mask = prefill_mask(self.decoder, layer_type, self.state.hidden, num_known, pictures)
            inputs[layer_type, first] = rope, mask
        for layer in range(start, end):
            rope, mask = inputs[self.decoder.layer_types[layer], layer == 0]
            self.state.previous = self.state.hidden
            if self.decoder.kept(layer) == "recurrent state":
                self.state.hidden = self._run_recurrent(layer, rope)
            else:
                self.state.attention_layer, self.state.layer_input = layer, self.state.hidden
                with self._watching(layer):
                    self.state.hidden = self.decoder.run_layer(
                        layer, self.state.hidden, rope, mask, self.state.cache, side_inputs
                    )
            self.add_deepstack(layer, num_known)
        if prefix is not None:
            states = prefix.read.states
            self.state.layer_input = torch.cat([states.layer_input[:, :num_known], self.state.layer_input], dim=1)
            self.state.hidden = torch.cat([states.hidden_states[:, :num_known], self.state.hidden], dim=1)
            # A prompt is continued only where every layer has attention.
            self.state.previous = self.state.layer_input

    def _run_recorded(self, start: int, end: int) -> bool:
        """Run layers [start, end) from a recording, if these layers of this prompt can be recorded and were."""
        if self.recorded is None or start == end or not self._can_record(range(start, end)):
            return False
        state, layer_types = self.state, self.decoder.layer_types[start:end]
        shape = SegmentShape(start, end, state.hidden.shape[1])
        output = self.recorded.run(shape, state.hidden, lambda: {kind: state.rope(kind) for kind in layer_types})
        if output is None:
            return False
        state.cache.load(output.keys, output.values, shape.num_tokens, start)
        state.hidden, state.attention_layer = output.hidden, end - 1
        state.layer_input = state.previous = output.layer_input
        return True

    def _can_record(self, layers: range) -> bool:
        """Return whether nothing but hidden states and positions of a single prompt decides what the layers compute."""
        deepstack = any(layers.start < len(image.tokens.deepstack) for image in self.state.images)
        return (
            len(self.state.sequences) == 1
            and self.state.per_layer_inputs is None
            and not (deepstack or self.rectifies or set(layers).intersection(self.watched))
            and not (self.decoder.prompt_attends_both_ways or self.decoder.pictures_attend_both_ways)
        )

    @contextmanager
    def _watching(self, layer: int, sequence: int | None = None) -> Iterator[None]:
        """Note how much the run of a layer in the block changes the tokens of all sequences or of one, if it counts."""
        if layer not in self.watched:
            yield
            return
        with watched_layer(self.decoder, layer) as calls:
            yield
        rows = slice(None) if sequence is None else slice(sequence, sequence + 1)
        changes = token_transitions(calls, self.state.lengths[rows])
        self.state.transitions[rows, : changes.shape[1]] += changes

    def _last_tokens(self, start: int) -> Tensor:
        """Run layers from ``start`` on, if there are any, for the last token of each sequence; return it: [B, d]."""
        lengths = self.state.lengths

        def last(values: Tensor) -> Tensor:
            values = values.expand(len(lengths), *values.shape[1:])
            return torch.stack([values[index, length - 1] for index, length in enumerate(lengths)])[:, None]

        hidden, side_inputs = last(self.state.hidden), self.state.per_layer_inputs
        side_inputs = None if side_inputs is None else last(side_inputs)
        for layer in range(start, self.decoder.num_layers):
            layer_type = self.decoder.layer_types[layer]
            rope = tuple(map(last, self.state.rope(layer_type)))
            window = self.decoder.sliding_window(layer_type)
            mask = decode_mask(lengths, max(lengths), 0, window, self.decoder.attention, hidden)
            hidden = self.decoder.run_layer(layer, hidden, rope, mask, self.state.cache, side_inputs)
        return hidden[:, 0]

    def _run_recurrent(self, layer: int, rope: Rope) -> Tensor:
        """Run a layer with a recurrent state; sequences of different lengths run alone, as padding would change it."""
        lengths = self.state.lengths
        if len(set(lengths)) == 1:
            with self._watching(layer):
                return self.decoder.run_layer(layer, self.state.hidden, rope, None, self.state.cache)
        caches = [KVCache(self.decoder) for _ in lengths]
        output = torch.zeros_like(self.state.hidden)
        for index, (length, cache) in enumerate(zip(lengths, caches, strict=True)):
            alone = self.state.hidden[index : index + 1, :length]
            with self._watching(layer, index):
                output[index, :length] = self.decoder.run_layer(layer, alone, rope, None, cache)[0]
        self.state.cache.join(layer, caches)
        return output

    def segment(self, start: int, end: int) -> Segment:
        """Return layers [start, end) with the tokens that they read, which are those that remain now."""
        lengths = self.state.lengths
        # A prompt ends with text, which has the same coordinate on all axes.
        positions = self.state.position_ids[0].expand(len(lengths), -1)
        return Segment(
            start,
            end,
            lengths,
            torch.stack([positions[index, length - 1] for index, length in enumerate(lengths)]) + 1,
            [[image.kept for image in sequence.images] for sequence in self.state.sequences],
            max(self.state.rating_layers, default=None),
        )

    def add_deepstack(self, layer: int, num_known: int = 0) -> None:
        """Add the features of the vision tower for layer ``layer`` to the remaining visual tokens after that layer.

        The first ``num_known`` tokens have theirs already.
        """
        for index, sequence in enumerate(self.state.sequences):
            for image in sequence.images:
                if layer < len(image.tokens.deepstack) and not (num_known and image.known):
                    added = image.tokens.deepstack[layer][image.kept]
                    self.state.hidden[index, image.slots - num_known] += added.to(
                        self.state.hidden.device, self.state.hidden.dtype
                    )
