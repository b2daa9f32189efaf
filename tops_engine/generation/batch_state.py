"""The state of a batch between decoder layers: hidden states, positions and the remaining visual tokens."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from tops_engine.device.transfer import to_device
from tops_engine.errors import InvalidInput
from tops_engine.families import Decoder
from tops_engine.families.decoder import Rope
from tops_engine.generation.cache import KVCache
from tops_engine.generation.planning import Group
from tops_engine.methods import Positions, Selection, VisualTokens


@dataclass(frozen=True)
class EmbeddedPrompt:
    """An embedded prompt before any token is dropped.

    Attributes
    ----------
    input_ids : int64 [N] on the CPU.
    position_ids : int64 [axes, N] on the CPU, of the unpruned prompt.
    spans : int64 [n] on the CPU for each image: its positions in the prompt.
    images : each image's visual tokens.
    groups : the images whose tokens are chosen together, with their token counts.
    """

    input_ids: Tensor
    position_ids: Tensor
    spans: list[Tensor]
    images: list[VisualTokens]
    groups: list[Group]


@dataclass
class ImageState:
    """An image inside a sequence as it stands: where its tokens are now, which they were, what was chosen last, whether
    the first segment of layers has read it before, and how many tokens each stands for where attention is rectified."""

    tokens: VisualTokens
    num_text_before_end: int
    slots: Tensor
    kept: Tensor
    selection: Selection | None = None
    known: bool = False
    sizes: Tensor | None = None


@dataclass(frozen=True)
class GroupState:
    """Images of a sequence whose tokens are chosen together."""

    group: Group
    images: list[ImageState]

    @property
    def num_tokens(self) -> int:
        """How many tokens of all images remain."""
        return sum(len(image.slots) for image in self.images)

    @property
    def stages(self) -> dict[int, int]:
        """How many tokens stay from a layer on, by the layer."""
        return {stage.layer: stage.num_tokens for stage in self.group.stages}


@dataclass
class SequenceState:
    """A sequence as it stands between two layers: tensors on the decoder's device (but ids), lengths on the host."""

    text_ids: Tensor
    text_slots: Tensor
    images: list[ImageState] = field(default_factory=list)
    groups: list[GroupState] = field(default_factory=list)

    @property
    def length(self) -> int:
        return len(self.text_slots) + sum(len(image.slots) for image in self.images)


class BatchState:
    """The hidden states of a batch between two decoder layers.

    Parameters
    ----------
    decoder : of the loaded model.
    prompts : the batch; prompts may differ in length and number of images.

    Attributes
    ----------
    hidden : [B, n, d], padded on the right.
    per_layer_inputs : [B, n, layers, c], what the layers get of each token beside its hidden state; None if nothing.
    position_ids : int64 [axes, B, n].
    attention_layer, layer_input : the last layer with attention that ran on the tokens as they are now, and its input
        [B, n, d]; None where no such layer ran yet.
    previous : the input of the last layer that ran, [B, n, d].
    transitions : how much the watched layers have changed each token so far, float32 [B, n]; 0 where none is watched.
    rating_layers : the layers whose attention rated tokens at the present stage.
    selection_flops : of each sequence, for rating and choosing.
    """

    def __init__(self, decoder: Decoder, prompts: Sequence[EmbeddedPrompt]) -> None:
        self.decoder = decoder
        self.sequences = [_read_sequence(prompt, decoder.device) for prompt in prompts]
        embedded = [_embed(decoder, prompt) for prompt in prompts]
        self.hidden = pad_sequence(embedded, batch_first=True)
        side_inputs = [_per_layer_inputs(decoder, *pair) for pair in zip(prompts, embedded, strict=True)]
        known = [inputs for inputs in side_inputs if inputs is not None]
        self.per_layer_inputs = pad_sequence(known, batch_first=True) if known else None
        columns = pad_sequence([prompt.position_ids.T for prompt in prompts], batch_first=True)
        self.position_ids = to_device(columns.permute(2, 0, 1), decoder.device)
        self.cache = KVCache(decoder)
        self.attention_layer: int | None = None
        self.layer_input = self.previous = self.hidden
        self.transitions = torch.zeros(self.hidden.shape[:2], device=decoder.device)
        self.rating_layers: set[int] = set()
        self.selection_flops = [0] * len(prompts)
        self._ropes: dict[str, Rope] = {}

    @property
    def images(self) -> list[ImageState]:
        return [image for sequence in self.sequences for image in sequence.images]

    @property
    def groups(self) -> list[GroupState]:
        return [group for sequence in self.sequences for group in sequence.groups]

    @property
    def lengths(self) -> list[int]:
        return [sequence.length for sequence in self.sequences]

    def rope(self, layer_type: str) -> Rope:
        """Return the rotary embedding of all tokens as they are now."""
        if layer_type not in self._ropes:
            self._ropes[layer_type] = self.decoder.rope(self.hidden, self.position_ids, layer_type)
        return self._ropes[layer_type]

    def picture_numbers(self) -> Tensor | None:
        """Return the number of the picture or frame that each token belongs to, int64 [B, n], -1 for text.

        None where the mask rule does not use it or there are no pictures. Where a whole prompt attends both ways, all
        of its tokens have one number.
        """
        if self.decoder.prompt_attends_both_ways:
            lengths = torch.tensor(self.lengths)[:, None]
            return to_device((torch.arange(int(lengths.max())) < lengths).long() - 1, self.decoder.device)
        if not self.decoder.pictures_attend_both_ways or not self.images:
            return None
        longest = max(sequence.length for sequence in self.sequences)
        pictures = torch.full((len(self.sequences), longest), -1, device=self.decoder.device)
        for index, sequence in enumerate(self.sequences):
            number = 0
            for image in sequence.images:
                frame = image.tokens.layout.frame
                frames = image.kept.new_zeros(1) if frame is None else to_device(frame, image.kept.device)[image.kept]
                pictures[index, image.slots] = number + frames
                number += 1 if frame is None else int(frame.max()) + 1
        return pictures

    def rater(self, next_layer: int, where: Literal["next", "previous"]) -> tuple[int, Tensor, bool]:
        """Return the layer whose attention rates, its input [B, n, d], and whether it ran.

        A layer without attention between tokens cannot rate: the next one that has it rates in its place, from the
        hidden states as they are now. Where no such layer ran on the present tokens, the next one is the previous too.
        """
        if where == "previous" and self.attention_layer is not None:
            return self.attention_layer, self.layer_input, True
        return self.decoder.rating_layer(next_layer), self.hidden, False

    def gather(self, positions: Positions, layer: int) -> None:
        """Move the tokens that remain from ``layer`` on to the front of each sequence, and number them."""
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
        self.transitions = self.transitions.gather(1, index)
        if self.per_layer_inputs is not None:
            rows = torch.arange(len(index), device=index.device)[:, None]
            self.per_layer_inputs = self.per_layer_inputs[rows, index]
        self.cache.keep(layer, index)
        if positions == "contiguous":
            self.position_ids = torch.arange(index.shape[1], device=index.device).repeat(1, len(index), 1)
        else:
            self.position_ids = self.position_ids.gather(2, index.expand(len(self.position_ids), -1, -1))


def _embed(decoder: Decoder, prompt: EmbeddedPrompt) -> Tensor:
    """Return the token embeddings with the visual tokens written over their placeholders: [N, d]."""
    embedded = decoder.embed(to_device(prompt.input_ids, decoder.device))
    for span, image in zip(prompt.spans, prompt.images, strict=True):
        features = image.features.to(decoder.device, embedded.dtype)
        embedded[to_device(span, decoder.device)] = features * decoder.embedding_multiplier
    return embedded


def _per_layer_inputs(decoder: Decoder, prompt: EmbeddedPrompt, embedded: Tensor) -> Tensor | None:
    """Return what the layers get of the tokens of a prompt beside their hidden states: [N, layers, c]."""
    input_ids = prompt.input_ids.clone()
    for span in prompt.spans:
        input_ids[span] = -1
    return decoder.per_layer_inputs(to_device(input_ids, decoder.device), embedded)


def _read_sequence(prompt: EmbeddedPrompt, device: torch.device) -> SequenceState:
    is_text = torch.ones(len(prompt.input_ids), dtype=torch.bool)
    for span in prompt.spans:
        is_text[span] = False
    if not is_text[-1]:
        raise InvalidInput("The prompt ends with a picture; the chat template has to put text after it.")
    text_slots = is_text.nonzero().flatten()
    images = [
        ImageState(
            tokens,
            int((text_slots < span[-1]).sum()),
            to_device(span, device),
            torch.arange(len(span), device=device),
        )
        for span, tokens in zip(prompt.spans, prompt.images, strict=True)
    ]
    groups = [GroupState(group, [images[number] for number in group.members]) for group in prompt.groups]
    return SequenceState(prompt.input_ids[text_slots], to_device(text_slots, device), images, groups)
