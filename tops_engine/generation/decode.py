"""Writing the answer: one token per sequence and step, on a cache whose layers hold different numbers of tokens."""

import torch
from torch import Tensor

from tops_engine.families import Decoder
from tops_engine.generation.cache import KVCache, decode_mask
from tops_engine.generation.prefill import Segment


class Decoding:
    """The decoding loop's state. On static buffers :class:`StaticDecoding` takes its place.

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

    def step(self, token_ids: Tensor) -> Tensor:
        """Feed one token of each sequence, int64 [B]; returns the logits of the next, float32 [B, vocab]."""
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
