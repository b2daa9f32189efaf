"""Writing the answer: one token per sequence and step, on a cache whose layers hold different numbers of tokens."""

import torch
from torch import Tensor

from tops_engine.families import Decoder
from tops_engine.generation.cache import decode_mask
from tops_engine.generation.prefill import Prefilled


class Decoding:
    """The decoding loop's state. Another cache (static, captured in a CUDA graph) replaces this class alone.

    Parameters
    ----------
    decoder : of the loaded model.
    prefilled : the prompt's cache and segments.
    """

    def __init__(self, decoder: Decoder, prefilled: Prefilled) -> None:
        self.decoder = decoder
        self.cache = prefilled.cache
        self.segments = prefilled.segments
        self.num_new = 0

    def step(self, token_ids: Tensor) -> Tensor:
        """Feed one token of each sequence, int64 [B]; returns the logits of the next, float32 [B, vocab]."""
        return self.decoder.logits(self._run(token_ids[:, None])[:, -1])

    def read(self, token_ids: Tensor) -> Tensor:
        """Feed several tokens of each sequence at once, int64 [B, q]; returns the logits after each, [B, q, vocab]."""
        return self.decoder.logits(self._run(token_ids))

    def rewind(self) -> None:
        """Go back to the end of the prompt."""
        self.cache.rewind(self.num_new)
        self.num_new = 0

    def _run(self, token_ids: Tensor) -> Tensor:
        hidden = self.decoder.embed(token_ids)
        num_asking = token_ids.shape[1]
        self.num_new += num_asking
        offsets = torch.arange(self.num_new - num_asking, self.num_new, device=token_ids.device)
        for segment in self.segments:
            rope = self.decoder.rope(hidden, segment.next_positions[:, None] + offsets)
            masks: dict[int | None, Tensor | None] = {}
            for layer in range(segment.start, segment.end):
                window = self.decoder.sliding_window(layer)
                if window not in masks:
                    masks[window] = decode_mask(
                        segment.lengths,
                        max(segment.lengths),
                        self.num_new,
                        window,
                        self.decoder.attention,
                        hidden,
                        num_asking,
                    )
                hidden = self.decoder.run_layer(layer, hidden, rope, masks[window], self.cache)
        return hidden
