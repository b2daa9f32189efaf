"""Prefill with recorded layers: where a prompt of the same shape comes back, a segment of layers is one launch.

A pruned prompt of a few hundred tokens costs a GPU less than the host needs for the launches of its layers. The layers
between two stages are therefore recorded as a CUDA graph when a prompt of their shape comes for the second time. The
selections between the segments are not recorded. Only prompts with exactly the same numbers of tokens share a
recording: other lengths would need padding, and the kernels could round differently.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from tops_engine.families import Decoder
from tops_engine.families.decoder import Rope
from tops_engine.generation.cache import prefill_mask
from tops_engine.generation.compiling import Record, Replayed

#: Whether ``compile=True`` records prompts, too. Off, because this has not run on a GPU yet.
RECORD_PREFILL = False

#: The most tokens of a recorded segment. Longer ones keep the GPU busy without it, and need large buffers.
MAX_TOKENS = 1024

#: The most shapes that are remembered, recorded or seen once.
MAX_SHAPES = 64

Ropes = Mapping[str, Rope]


class SegmentShape(NamedTuple):
    """Layers [start, end) on a prompt of one sequence: they can be replayed for any prompt with as many tokens."""

    start: int
    end: int
    num_tokens: int


@dataclass(frozen=True)
class SegmentOutput:
    """What a segment of n tokens computes, in tensors that no later prompt changes.

    Attributes
    ----------
    hidden : [1, n, d], the output of the last layer.
    layer_input : [1, n, d], the input of the last layer.
    keys, values : [1, heads, n, head_dim] for each layer.
    """

    hidden: Tensor
    layer_input: Tensor
    keys: Sequence[Tensor]
    values: Sequence[Tensor]


class PromptSlots:
    """One layer's cache as the layers of transformers call it, for the tokens of a whole prompt.

    Parameters
    ----------
    keys, values : [1, heads, n, head_dim], written in place.
    """

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self._keys, self._values = keys, values

    def update(self, key_states: Tensor, value_states: Tensor, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        """Store [1, heads, n, head_dim]; return them."""
        self._keys.copy_(key_states)
        self._values.copy_(value_states)
        return key_states, value_states


class RecordedSegment:
    """The buffers of a segment of one shape, and its layers on them.

    Parameters
    ----------
    decoder : of the loaded model.
    shape : of the segment; all of its layers have keys of one shape.
    ropes : the rotary embedding of each type of its layers, for the shapes of the buffers.
    record, addresses : as :class:`~tops_engine.generation.compiling.Replayed` takes them.
    """

    def __init__(
        self,
        decoder: Decoder,
        shape: SegmentShape,
        ropes: Ropes,
        record: Record | None,
        addresses: Callable[[], Sequence[int]],
    ) -> None:
        self.shape = shape
        self._decoder = decoder
        self._replayed = Replayed(record, addresses)
        heads, head_dim = decoder.shape.key_shape(shape.start)
        width, num_layers = decoder.shape.hidden_size, shape.end - shape.start
        self._input = torch.empty(1, shape.num_tokens, width, dtype=decoder.dtype, device=decoder.device)
        self._ropes = {kind: tuple(map(torch.empty_like, rope)) for kind, rope in ropes.items()}
        self._output, self._layer_input = torch.empty_like(self._input), torch.empty_like(self._input)
        self._keys = self._input.new_empty(num_layers, 1, heads, shape.num_tokens, head_dim)
        self._values = torch.empty_like(self._keys)

    @property
    def num_bytes(self) -> int:
        """Bytes of the buffers. A CUDA graph has memory of its own beside them, as much as one layer needs."""
        ropes = [part for rope in self._ropes.values() for part in rope]
        tensors = self._input, self._output, self._layer_input, self._keys, self._values, *ropes
        return sum(tensor.nbytes for tensor in tensors)

    def __call__(self, hidden: Tensor, ropes: Ropes) -> SegmentOutput:
        """Run the layers on [1, n, d] with the rotary embedding of each of their types."""
        self._input.copy_(hidden)
        for kind, rope in self._ropes.items():
            for buffer, part in zip(rope, ropes[kind], strict=True):
                buffer.copy_(part)
        self._replayed(self._run)
        return SegmentOutput(
            self._output.clone(), self._layer_input.clone(), self._keys.clone().unbind(), self._values.clone().unbind()
        )

    def _run(self) -> None:
        """Run the layers that are recorded: they use buffers only."""
        decoder, start, end = self._decoder, self.shape.start, self.shape.end
        masks = {kind: prefill_mask(decoder, kind, self._input) for kind in self._ropes}
        hidden = layer_input = self._input
        for layer in range(start, end):
            kind, layer_input = decoder.layer_types[layer], hidden
            slots = PromptSlots(self._keys[layer - start], self._values[layer - start])
            hidden = decoder.run_layer(layer, hidden, self._ropes[kind], masks[kind], slots)
        self._layer_input.copy_(layer_input)
        self._output.copy_(hidden)


class RecordedPrompts:
    """The recorded segments of a loaded model: those used last, as many as fit.

    Parameters
    ----------
    decoder, record, addresses : as :class:`RecordedSegment` takes them.
    max_bytes : that the buffers of all segments may take.
    """

    def __init__(
        self, decoder: Decoder, record: Record | None, addresses: Callable[[], Sequence[int]], max_bytes: int
    ) -> None:
        self._decoder, self._record, self._addresses = decoder, record, addresses
        self._max_bytes = max_bytes
        #: By shape, the oldest first; None for a shape that was seen once.
        self._segments: OrderedDict[SegmentShape, RecordedSegment | None] = OrderedDict()

    def run(self, shape: SegmentShape, hidden: Tensor, ropes: Callable[[], Ropes]) -> SegmentOutput | None:
        """Run a segment if its shape has come before; None leaves it to the plain loop.

        Parameters
        ----------
        hidden : [1, n, d], the input of the first layer.
        ropes : returns the rotary embedding of each type of the layers.
        """
        if shape.num_tokens > MAX_TOKENS or not self._alike(shape):
            return None
        returns = shape in self._segments
        segment = self._segments.pop(shape, None)
        if returns and segment is None:
            segment = RecordedSegment(self._decoder, shape, ropes(), self._record, self._addresses)
        # A segment that fails, for lack of memory for example, is not kept.
        output = None if segment is None else segment(hidden, ropes())
        self._segments[shape] = segment
        while self.num_bytes > self._max_bytes or len(self._segments) > MAX_SHAPES:
            self._segments.popitem(last=False)
        return output

    @property
    def num_bytes(self) -> int:
        """Bytes of the buffers of all recorded segments."""
        return sum(segment.num_bytes for segment in self._segments.values() if segment is not None)

    def clear(self) -> None:
        """Free all segments."""
        self._segments.clear()

    def _alike(self, shape: SegmentShape) -> bool:
        """Return whether the keys of all layers of a segment have one shape."""
        return len({self._decoder.shape.key_shape(layer) for layer in range(shape.start, shape.end)}) == 1
