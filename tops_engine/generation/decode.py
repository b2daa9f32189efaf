"""Decode one token per sequence and step, on a cache whose layers hold different numbers of tokens."""

import torch
from torch import Tensor

from tops_engine.families import Decoder
from tops_engine.families.decoder import Rope
from tops_engine.generation.cache import KVCache, decode_mask
from tops_engine.generation.prefill import Segment


class Decoding:
    """The state of the decoding loop. :class:`StaticDecoding` replaces it on static buffers.

    Parameters
    ----------
    decoder : of the loaded model.
    cache, segments : of the prompt.
    """

    def __init__(self, decoder: Decoder, cache: KVCache, segments: list[Segment]) -> None:
        self.decoder = decoder
        self.cache = cache
        self.segments = segments
        self.num_new = 0
        cache.mark()

    def step(self, token_ids: Tensor) -> Tensor:
        """Feed one token of each sequence, int64 [B]; return the logits of the next, float32 [B, vocab]."""
        return self.decoder.logits(self._run(token_ids[:, None])[:, -1])

    def read_instead(self, token_ids: Tensor) -> Tensor:
        """Feed other tokens in place of those after the prompt, int64 [B, q] at once.

        Returns
        -------
        The logits after each, float32 [B, q, vocab].
        """
        self.cache.rewind(self.num_new)
        self.num_new = 0
        return self.decoder.logits(self._run(token_ids))

    def _run(self, token_ids: Tensor) -> Tensor:
        hidden = self.decoder.embed(token_ids)
        num_asking = token_ids.shape[1]
        self.num_new += num_asking
        side_inputs = self.decoder.per_layer_inputs(token_ids, hidden)
        offsets = torch.arange(self.num_new - num_asking, self.num_new, device=token_ids.device)
        for segment in self.segments:
            inputs = {
                layer_type: self._layer_inputs(layer_type, segment, hidden, offsets)
                for layer_type in set(self.decoder.layer_types[segment.start : segment.end])
            }
            for layer in range(segment.start, segment.end):
                rope, mask = inputs[self.decoder.layer_types[layer]]
                hidden = self.decoder.run_layer(layer, hidden, rope, mask, self.cache, side_inputs)
        return hidden

    def _layer_inputs(
        self, layer_type: str, segment: Segment, hidden: Tensor, offsets: Tensor
    ) -> tuple[Rope, Tensor | None]:
        """Compute the rotary embedding and the mask of a segment's layers of one type."""
        mask = decode_mask(
            segment.lengths,
            max(segment.lengths),
            self.num_new,
            self.decoder.sliding_window(layer_type),
            self.decoder.attention,
            hidden,
            len(offsets),
        )
        return self.decoder.rope(hidden, segment.next_positions[:, None] + offsets, layer_type), mask
