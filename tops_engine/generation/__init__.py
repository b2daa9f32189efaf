"""Prefill with pruning, decoding, sampling and streaming of text."""

from tops_engine.generation.batch_state import EmbeddedPrompt
from tops_engine.generation.cache import KVCache
from tops_engine.generation.decode import Decoding
from tops_engine.generation.prefill import Prefill, Prefilled, Segment
from tops_engine.generation.sampling import Sampler
from tops_engine.generation.text_stream import TextStream

__all__ = ["Decoding", "EmbeddedPrompt", "KVCache", "Prefill", "Prefilled", "Sampler", "Segment", "TextStream"]
