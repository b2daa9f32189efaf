"""The signals of one image that a method reads between two decoder layers."""

from typing import Literal

import torch
from torch import Tensor

from tops_engine.device.transfer import to_device
from tops_engine.families.decoder import Rope
from tops_engine.generation.batch_state import BatchState, ImageState
from tops_engine.methods import LayerTokens, Rows


class LayerSignals:
    """The signals of the remaining tokens of an image, computed on demand, with a count of their FLOPs.

    Parameters
    ----------
    state : of the batch.
    next_layer : the decoder layer about to run.
    index, image : the sequence, and the image in it.
    """

    def __init__(self, state: BatchState, next_layer: int, index: int, image: ImageState) -> None:
        self.state = state
        self.decoder = state.decoder
        self.next_layer = next_layer
        self.index = index
        self.image = image
        self.sequence = state.sequences[index]

    def layer_tokens(self) -> LayerTokens:
        """Return the tokens with signals that are computed on demand."""
        return LayerTokens(
            self.state.hidden[self.index, self.image.slots],
            self.image.kept,
            self.image.tokens.layout,
            self.attention,
            self.text_similarity,
            lambda: self.decoder.final_norm(self.state.hidden[self.index, self._image_and_text]),
            lambda: self.previous_keys().transpose(0, 1)[self._image_and_text].flatten(1),
            lambda: self.state.previous[self.index, self.image.slots],
            lambda: self.state.transitions[self.index, self.image.slots],
        )

    def attention(
        self, rows: Rows, layer: Literal["next", "previous"] = "next", heads: Literal["mean", "max"] = "mean"
    ) -> Tensor:
        """Compute attention rows, as :class:`~tops_engine.methods.AttentionRows` says."""
        state, index, length = self.state, self.index, self.sequence.length
        asking = {"text": self._text_slots, "last": self._text_slots[-1:], "image": self.image.slots}[rows]
        number, layer_input, ran = state.rater(self.next_layer, layer)
        state.rating_layers.add(number)
        ran = ran or self.decoder.source_layer(number) != number
        state.selection_flops[index] += self.decoder.shape.rating_flops(number, len(asking), length, keys_known=ran)
        pictures = state.picture_numbers()
        return self.decoder.attention_rows(
            number,
            layer_input[index, :length],
            self._rope(number),
            asking,
            self.image.slots,
            heads,
            state.cache.keys(number)[index, :, :length] if ran else None,
            None if pictures is None else pictures[index, :length],
        )

    def previous_keys(self) -> Tensor:
        """Return the keys of the sequence in the layer that ran last: [kv_heads, n, head_dim]."""
        state, index, length = self.state, self.index, self.sequence.length
        layer, layer_input, ran = state.rater(self.next_layer, "previous")
        if ran or self.decoder.source_layer(layer) != layer:
            return state.cache.keys(layer)[index, :, :length]
        state.selection_flops[index] += self.decoder.shape.rating_flops(layer, 0, length)
        return self.decoder.keys(layer, layer_input[index, :length], self._rope(layer))

    def text_similarity(self) -> Tensor:
        """Compute products of projected tokens and embeddings of the text after the image: float32 [N, t]."""
        text_ids = self.sequence.text_ids[self.image.num_text_before_end :]
        embedded = self.decoder.embed(to_device(text_ids, self.decoder.device)).float()
        features = self.image.tokens.features
        self.state.selection_flops[self.index] += 2 * len(embedded) * features.numel()
        return features.to(embedded) @ embedded.T

    @property
    def _text_slots(self) -> Tensor:
        return self.sequence.text_slots[self.image.num_text_before_end :]

    @property
    def _image_and_text(self) -> Tensor:
        return torch.cat([self.image.slots, self._text_slots])

    def _rope(self, layer: int) -> Rope:
        rope = self.state.rope(self.decoder.layer_types[layer])
        return tuple(part[self.index % len(part), : self.sequence.length] for part in rope)
