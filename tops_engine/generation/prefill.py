"""Reading the prompt: the engine's own loop over the decoder layers, dropping visual tokens between them.

This is the one place where selections are applied: hidden states, positions and bookkeeping are gathered here.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from tops_engine.budget import Stage
from tops_engine.device.clock import Clock
from tops_engine.device.transfer import to_device
from tops_engine.errors import InvalidInput, TopsError
from tops_engine.families import Decoder
from tops_engine.families.decoder import Rope
from tops_engine.generation.cache import KVCache, prefill_mask
from tops_engine.generation.prefix_cache import LayerStates, Prefix
from tops_engine.methods import AttentionRows, LayerTokens, Method, Positions, Rows, Selection, VisualTokens


@dataclass(frozen=True)
class EmbeddedPrompt:
    """One prompt as the decoder gets it, before anything is dropped.

    Attributes
    ----------
    input_ids : int64 [N] on the CPU.
    position_ids : int64 [axes, N] on the CPU, of the unpruned prompt.
    spans : int64 [n] on the CPU for each image: its positions in the prompt.
    images : each image's visual tokens.
    stages : each image's token counts.
    """

    input_ids: Tensor
    position_ids: Tensor
    spans: list[Tensor]
    images: list[VisualTokens]
    stages: list[tuple[Stage, ...]]


@dataclass(frozen=True)
class Segment:
    """Consecutive layers that see the same tokens.

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
    """What decoding needs: the cache, the first logits (float32 [B, vocab]) and the segments.

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


@dataclass
class _Image:
    """An image inside a sequence as it stands: where its tokens are now, which they were, what was chosen last, and
    whether the first segment of layers has read it before."""

    tokens: VisualTokens
    stages: dict[int, int]
    num_text_before_end: int
    slots: Tensor
    kept: Tensor
    selection: Selection | None = None
    known: bool = False


@dataclass
class _Sequence:
    """A sequence as it stands between two layers: tensors on the decoder's device (but ids), lengths on the host."""

    text_ids: Tensor
    text_slots: Tensor
    images: list[_Image] = field(default_factory=list)

    @property
    def length(self) -> int:
        return len(self.text_slots) + sum(len(image.slots) for image in self.images)


class Prefill:
    """One batch on its way through the decoder.

    Parameters
    ----------
    decoder : of the loaded model.
    prompts : the batch; prompts may differ in length and number of images.
    method : how tokens are chosen.
    positions : how the remaining ones are numbered; ``original`` where positions are 3-D.
    clock : gets the time spent in ``selection``.
    prefix : the beginning of a single prompt that was read before: it runs only behind the first segment of layers.
    """

    def __init__(
        self,
        decoder: Decoder,
        prompts: Sequence[EmbeddedPrompt],
        method: Method,
        positions: Positions,
        clock: Clock,
        prefix: Prefix | None = None,
    ) -> None:
        self.decoder = decoder
        self.method = method
        self.positions = positions
        self.clock = clock
        self.prefix = prefix
        self.sequences = [_read_sequence(prompt, decoder.device) for prompt in prompts]
        if prefix is not None:
            known = prefix.read.selections[: prefix.num_images]
            for image, selection in zip(self.sequences[0].images, known, strict=False):
                image.selection, image.known = selection, True
        self.hidden = pad_sequence([_embed(decoder, prompt) for prompt in prompts], batch_first=True)
        columns = pad_sequence([prompt.position_ids.T for prompt in prompts], batch_first=True)
        #: int64 [axes, B, n]
        self.position_ids = to_device(columns.permute(2, 0, 1), decoder.device)
        self.cache = KVCache(decoder)
        #: The last layer with attention that ran on the tokens as they are now, and its input.
        self.attention_layer: int | None = None
        self.layer_input = self.hidden
        #: The layers whose attention rated tokens at the stage in hand.
        self.rating_layers: set[int] = set()
        self.selection_flops = [0] * len(prompts)
        self._ropes: dict[str, Rope] = {}

    def run(self) -> Prefilled:
        """Run all layers; returns the cache, the logits after the last prompt token, and what was kept where."""
        starts = {0} | {layer for image in self._images() for layer in image.stages}
        bounds = [*sorted(starts), self.decoder.num_layers]
        segments = []
        stage_one: list[list[Selection | None]] = []
        first_states: LayerStates | None = None
        for start, end in itertools.pairwise(bounds):
            with self.clock("selection"):
                self._prune(start)
            self._run_layers(start, end, self.prefix if start == 0 else None)
            if start == 0:
                stage_one = [[image.selection for image in sequence.images] for sequence in self.sequences]
                if len(self.sequences) == 1 and self.decoder.can_resume(end):
                    kept = self.cache.keys_and_values(end)
                    first_states = LayerStates(*kept, self.layer_input, self.hidden)
            segments.append(self._segment(start, end))
        lengths = segments[-1].lengths
        final = torch.stack([self.hidden[index, length - 1] for index, length in enumerate(lengths)])
        logits = self.decoder.logits(final)
        return Prefilled(self.cache, logits, segments, self.selection_flops, stage_one, first_states)

    def _run_layers(self, start: int, end: int, prefix: Prefix | None) -> None:
        """Run layers [start, end); with a prefix only for the tokens behind it."""
        num_known = 0
        if prefix is not None:
            num_known = prefix.num_tokens
            self.cache.load(prefix.read.states.keys, prefix.read.states.values, num_known)
            self.hidden = self.hidden[:, num_known:]
        pictures = self._picture_numbers()
        inputs = {}
        for layer_type in set(self.decoder.layer_types[start:end]):
            cos, sin = self._rope(layer_type)
            mask = prefill_mask(self.decoder, layer_type, self.hidden, num_known, pictures)
            inputs[layer_type] = (cos[:, num_known:], sin[:, num_known:]), mask
        for layer in range(start, end):
            rope, mask = inputs[self.decoder.layer_types[layer]]
            if self.decoder.kept(layer) == "recurrent state":
                self.hidden = self._run_recurrent(layer, rope)
            else:
                self.attention_layer, self.layer_input = layer, self.hidden
                self.hidden = self.decoder.run_layer(layer, self.hidden, rope, mask, self.cache)
            self._add_deepstack(layer, num_known)
        if prefix is not None:
            states = prefix.read.states
            self.layer_input = torch.cat([states.layer_input[:, :num_known], self.layer_input], dim=1)
            self.hidden = torch.cat([states.hidden_states[:, :num_known], self.hidden], dim=1)

    def _run_recurrent(self, layer: int, rope: Rope) -> Tensor:
        """Run a layer that keeps a recurrent state; sequences of a ragged batch go alone, as padding would enter it."""
        lengths = [sequence.length for sequence in self.sequences]
        if len(set(lengths)) == 1:
            return self.decoder.run_layer(layer, self.hidden, rope, None, self.cache)
        caches = [KVCache(self.decoder) for _ in lengths]
        output = torch.zeros_like(self.hidden)
        for index, (length, cache) in enumerate(zip(lengths, caches, strict=True)):
            alone = self.hidden[index : index + 1, :length]
            output[index, :length] = self.decoder.run_layer(layer, alone, rope, None, cache)[0]
        self.cache.join(layer, caches)
        return output

    def _rope(self, layer_type: str) -> Rope:
        """Return the rotary embedding of all tokens as they are now."""
        if layer_type not in self._ropes:
            self._ropes[layer_type] = self.decoder.rope(self.hidden, self.position_ids, layer_type)
        return self._ropes[layer_type]

    def _picture_numbers(self) -> Tensor | None:
        """Return the number of the picture that each token belongs to, int64 [B, n], -1 for text.

        None where the mask rule does not use it or there are no pictures.
        """
        if not self.decoder.pictures_attend_both_ways or not self._images():
            return None
        longest = max(sequence.length for sequence in self.sequences)
        pictures = torch.full((len(self.sequences), longest), -1, device=self.decoder.device)
        for index, sequence in enumerate(self.sequences):
            for number, image in enumerate(sequence.images):
                pictures[index, image.slots] = number
        return pictures

    def _images(self) -> list[_Image]:
        return [image for sequence in self.sequences for image in sequence.images]

    def _segment(self, start: int, end: int) -> Segment:
        lengths = [sequence.length for sequence in self.sequences]
        # A prompt ends with text, which has the same coordinate on all axes.
        positions = self.position_ids[0].expand(len(lengths), -1)
        return Segment(
            start,
            end,
            lengths,
            torch.stack([positions[index, length - 1] for index, length in enumerate(lengths)]) + 1,
            [[image.kept for image in sequence.images] for sequence in self.sequences],
            max(self.rating_layers, default=None),
        )

    def _prune(self, layer: int) -> None:
        """Ask the method which tokens stay from ``layer`` on, and drop the others."""
        self.rating_layers = set()
        pending = [
            (index, image, count)
            for index, sequence in enumerate(self.sequences)
            for image in sequence.images
            if (count := image.stages.get(layer, len(image.slots))) < len(image.slots)
            or (self.method.adaptive and layer > 0 and layer in image.stages)
        ]
        if not pending:
            return
        asked = [entry for entry in pending if layer or entry[1].selection is None]
        counts = [count for _, _, count in asked]
        if layer:
            shown = [self._layer_tokens(layer, index, image) for index, image, _ in asked]
            selections = self.method.select_at_layer(shown, counts)
        else:
            selections = self.method.select_visual([image.tokens for _, image, _ in asked], counts) if asked else []
        for (index, image, count), selection in zip(asked, selections, strict=True):
            self._check(index, image, count, selection)
            image.selection = selection
        for index, image, _ in pending:
            self._apply(index, image)
        self._gather()

    def _add_deepstack(self, layer: int, num_known: int) -> None:
        """After layer ``layer``: give the visual tokens that remain what the vision tower has for them there.

        ``num_known`` tokens at the beginning have theirs already.
        """
        for index, sequence in enumerate(self.sequences):
            for image in sequence.images:
                if layer < len(image.tokens.deepstack) and not (num_known and image.known):
                    added = image.tokens.deepstack[layer][image.kept]
                    self.hidden[index, image.slots - num_known] += added.to(self.hidden.device, self.hidden.dtype)

    def _layer_tokens(self, layer: int, index: int, image: _Image) -> LayerTokens:
        return LayerTokens(
            self.hidden[index, image.slots],
            image.kept,
            image.tokens.layout,
            self._attention(layer, index, image),
            lambda: self._text_similarity(index, image),
            lambda: self.decoder.final_norm(self.hidden[index, self._image_and_text(index, image)]),
            lambda: self._previous_keys(layer, index).transpose(0, 1)[self._image_and_text(index, image)].flatten(1),
        )

    def _rater(self, next_layer: int, where: Literal["next", "previous"]) -> tuple[int, Tensor, bool]:
        """Return the layer whose attention rates, its input [B, n, d], and whether it ran.

        A layer without attention between tokens cannot rate: the next one that has it rates in its place, from the
        hidden states as they are now. Where no such layer ran on the present tokens, the next one is the previous too.
        """
        if where == "previous" and self.attention_layer is not None:
            return self.attention_layer, self.layer_input, True
        return self.decoder.rating_layer(next_layer), self.hidden, False

    def _rope_of(self, layer: int, index: int) -> Rope:
        """Return the rotary embedding of one sequence at a layer."""
        cos, sin = self._rope(self.decoder.layer_types[layer])
        length = self.sequences[index].length
        return cos[index % len(cos), :length], sin[index % len(sin), :length]

    def _previous_keys(self, next_layer: int, index: int) -> Tensor:
        """Return the keys of one sequence in the layer that ran last: [kv_heads, n, head_dim]."""
        layer, layer_input, ran = self._rater(next_layer, "previous")
        length = self.sequences[index].length
        if ran:
            return self.cache.keys(layer)[index, :, :length]
        self.selection_flops[index] += self.decoder.shape.rating_flops(0, length)
        return self.decoder.keys(layer, layer_input[index, :length], self._rope_of(layer, index))

    def _attention(self, next_layer: int, index: int, image: _Image) -> AttentionRows:
        sequence = self.sequences[index]
        length = sequence.length

        def attention(
            rows: Rows, layer: Literal["next", "previous"] = "next", heads: Literal["mean", "max"] = "mean"
        ) -> Tensor:
            text = sequence.text_slots[image.num_text_before_end :]
            asking = {"text": text, "last": text[-1:], "image": image.slots}[rows]
            number, layer_input, ran = self._rater(next_layer, layer)
            self.rating_layers.add(number)
            self.selection_flops[index] += self.decoder.shape.rating_flops(len(asking), length, keys_known=ran)
            pictures = self._picture_numbers()
            return self.decoder.attention_rows(
                number,
                layer_input[index, :length],
                self._rope_of(number, index),
                asking,
                image.slots,
                heads,
                self.cache.keys(number)[index, :, :length] if ran else None,
                None if pictures is None else pictures[index, :length],
            )

        return attention

    def _text_similarity(self, index: int, image: _Image) -> Tensor:
        text_ids = self.sequences[index].text_ids[image.num_text_before_end :]
        embedded = self.decoder.embed(to_device(text_ids, self.decoder.device)).float()
        features = image.tokens.features
        self.selection_flops[index] += 2 * len(embedded) * features.numel()
        return features.to(embedded) @ embedded.T

    def _image_and_text(self, index: int, image: _Image) -> Tensor:
        return torch.cat([image.slots, self.sequences[index].text_slots[image.num_text_before_end :]])

    def _check(self, index: int, image: _Image, count: int, selection: Selection) -> None:
        chosen = len(selection.indices)
        if not (0 < chosen <= count if self.method.adaptive else chosen == count):
            raise TopsError(
                f"Method {self.method.name!r} was asked for {count} tokens and chose {chosen}; "
                "this is a bug in the method."
            )
        self.selection_flops[index] += self.method.selection_flops(len(image.slots), chosen, self.hidden.shape[2])

    def _apply(self, index: int, image: _Image) -> None:
        selection = image.selection
        assert selection is not None
        image.slots = image.slots[selection.indices]
        image.kept = image.kept[selection.indices]
        if selection.features is not None:
            # Not in place: the states before may be kept as the beginning of prompts to come.
            places = torch.full_like(image.slots, index), image.slots
            self.hidden = self.hidden.index_put(places, selection.features.to(self.hidden.dtype))

    def _gather(self) -> None:
        """Close the gaps: bring the remaining tokens of each sequence to its front."""
        remaining = []
        for sequence in self.sequences:
            slots = torch.cat([sequence.text_slots, *(image.slots for image in sequence.images)]).sort().values
            sequence.text_slots = torch.searchsorted(slots, sequence.text_slots)
            for image in sequence.images:
                image.slots = torch.searchsorted(slots, image.slots)
            remaining.append(slots)
        index = pad_sequence(remaining, batch_first=True)
        self._ropes, self.attention_layer = {}, None
        self.hidden = self.hidden.gather(1, index[..., None].expand(-1, -1, self.hidden.shape[2]))
        if self.positions == "contiguous":
            self.position_ids = torch.arange(index.shape[1], device=index.device).repeat(1, len(index), 1)
        else:
            self.position_ids = self.position_ids.gather(2, index.expand(len(self.position_ids), -1, -1))


def _embed(decoder: Decoder, prompt: EmbeddedPrompt) -> Tensor:
    """Token embeddings with the visual tokens written over their placeholders: [N, d]."""
    embedded = decoder.embed(to_device(prompt.input_ids, decoder.device))
    for span, image in zip(prompt.spans, prompt.images, strict=True):
        embedded[to_device(span, decoder.device)] = image.features.to(decoder.device, embedded.dtype)
    return embedded


def _read_sequence(prompt: EmbeddedPrompt, device: torch.device) -> _Sequence:
    is_text = torch.ones(len(prompt.input_ids), dtype=torch.bool)
    for span in prompt.spans:
        is_text[span] = False
    if not is_text[-1]:
        raise InvalidInput("The prompt ends with a picture; the chat template has to put text after it.")
    text_slots = is_text.nonzero().flatten()
    images = [
        _Image(
            tokens,
            {stage.layer: stage.num_tokens for stage in stages},
            int((text_slots < span[-1]).sum()),
            to_device(span, device),
            torch.arange(len(span), device=device),
        )
        for span, tokens, stages in zip(prompt.spans, prompt.images, prompt.stages, strict=True)
    ]
    return _Sequence(prompt.input_ids[text_slots], to_device(text_slots, device), images)
