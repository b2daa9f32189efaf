"""Decode with a recorded step: its kernels run on buffers whose addresses do not change.

After the prefill, the keys and values of each layer are copied into buffers with a capacity for each layer. A step is
then a function of buffers (a token and the number of tokens written -> logits) that never waits for the host. On a GPU
it is recorded once as a CUDA graph, and each further token is one launch; before the recording ``torch.compile`` fuses
the small operations between the matrix products. All layers run the same compiled code: another number of layers, or
other layers at which tokens are dropped, need no new compilation.
"""

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tops_engine.device.memory import MEMORY_SHARE, total_memory
from tops_engine.errors import UnsupportedModel
from tops_engine.families import Decoder
from tops_engine.families.decoder import Rope
from tops_engine.generation import recorded_prefill
from tops_engine.generation.attention import ONE_TOKEN
from tops_engine.generation.cache import KVCache, slot_mask
from tops_engine.generation.compiling import Record, Replayed, fused, recorder
from tops_engine.generation.decode import Decoding
from tops_engine.generation.prefill import Prefilled, Segment
from tops_engine.generation.recorded_prefill import RecordedPrompts

# Capacities are multiples of this, so that prompts of about the same length share a recorded step. Reading 256 slots
# too many costs a 7B model 1 % of a token.
GRAIN = 256

# Room for new tokens at first. Whenever it is used up, it is doubled and the step is recorded again.
FIRST_ROOM = 256


@dataclass(frozen=True)
class Layout:
    """The shape of the buffers: prompts with the same layout can use the same ones.

    Attributes
    ----------
    batch_size : number of sequences.
    spans : (start, end, capacity): layers [start, end) hold the same number of tokens.
    """

    batch_size: int
    spans: tuple[tuple[int, int, int], ...]

    @classmethod
    def of(cls, segments: Sequence[Segment], num_new: int) -> "Layout":
        """Return the layout for the layers of a prompt and ``num_new`` more tokens."""
        spans = [(part.start, part.end, -(-(max(part.lengths) + num_new) // GRAIN) * GRAIN) for part in segments]
        return cls(len(segments[0].lengths), tuple(spans))

    def room(self, segments: Sequence[Segment]) -> int:
        """Return how many new tokens fit into the buffers."""
        pairs = zip(self.spans, segments, strict=True)
        return min(capacity - max(segment.lengths) for (_, _, capacity), segment in pairs)


class SlotCache:
    """One layer's cache as the layers of transformers call it, for one new token of each sequence.

    Parameters
    ----------
    keys, values : [B, heads, capacity, head_dim], written in place.
    slots : int64 [B], where each sequence's token goes.
    """

    def __init__(self, keys: Tensor, values: Tensor, slots: Tensor) -> None:
        self.keys, self.values, self.slots = keys, values, slots

    def update(self, key_states: Tensor, value_states: Tensor, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        """Store [B, heads, 1, head_dim]; return all slots, written or not."""
        rows = torch.arange(self.slots.shape[0], device=self.slots.device)
        self.keys[rows, :, self.slots] = key_states[:, :, 0]
        self.values[rows, :, self.slots] = value_states[:, :, 0]
        return self.keys, self.values


LayerTypes = tuple[str, ...]


def begin(
    decoder: Decoder, hidden: Tensor, starts: Tensor, num_new: Tensor, capacity: int, layer_types: LayerTypes
) -> tuple[Tensor, list[tuple[Rope, Tensor]]]:
    """Compute what the layers of a span share.

    Parameters
    ----------
    hidden : [B, 1, d].
    starts : int64 [2, B], slot and position id of the first new token of each sequence.
    num_new : int64 [], new tokens before the one that attends.
    layer_types : the types of these layers.

    Returns
    -------
    The token's slot, int64 [B]; rotary embedding and mask of each type.
    """
    slots, positions = starts + num_new
    inputs = [
        (
            decoder.rope(hidden, positions[:, None], layer_type),
            slot_mask(slots, capacity, decoder.sliding_window(layer_type), hidden),
        )
        for layer_type in layer_types
    ]
    return slots, inputs


def run_layer(
    layer: nn.Module,
    hidden: Tensor,
    positions: dict[str, Any],
    mask: Tensor,
    keys: Tensor,
    values: Tensor,
    slots: Tensor,
    cache_argument: str,
) -> Tensor:
    """Run a decoder layer on [B, 1, d], with ``position_arguments`` and ``cache_argument`` of its decoder."""
    cache = SlotCache(keys, values, slots)
    return layer(hidden, attention_mask=mask, **{cache_argument: cache}, **positions)


def finish(decoder: Decoder, hidden: Tensor) -> Tensor:
    """Compute the logits, float32 [B, vocab], from the output of the last layer, [B, 1, d]."""
    return decoder.logits(hidden[:, -1])


class StaticStep:
    """The buffers of one layout, and the step on them.

    Parameters
    ----------
    pool : has the decoder and the functions that the step runs.
    layout : of the buffers.
    """

    def __init__(self, pool: "StepPool", layout: Layout) -> None:
        self.layout = layout
        self._pool = pool
        self._replayed = Replayed(pool.record, pool.addresses)
        decoder, size = pool.decoder, layout.batch_size
        self._num_new = torch.zeros((), dtype=torch.int64, device=decoder.device)
        self._tokens = self._num_new.new_zeros(size, 1)
        #: int64 [spans, 2, B]
        self._starts = self._num_new.new_zeros(len(layout.spans), 2, size)
        self._logits = torch.empty(size, decoder.num_logits, device=decoder.device)
        shapes = [
            (size, heads, capacity, head_dim)
            for start, end, capacity in layout.spans
            for heads, head_dim in map(decoder.shape.key_shape, range(start, end))
        ]
        # Zeros: slots that were never written are masked, but zero times NaN would be NaN.
        self.keys = [torch.zeros(shape, dtype=decoder.dtype, device=decoder.device) for shape in shapes]
        self.values = [torch.zeros_like(keys) for keys in self.keys]

    @property
    def num_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in (*self.keys, *self.values))

    def load(self, segments: Sequence[Segment], keys: Sequence[Tensor], values: Sequence[Tensor]) -> None:
        """Fill the buffers with each layer's keys and values, [B, heads, slots, head_dim], of a prompt (and answer)."""
        for starts, segment in zip(self._starts, segments, strict=True):
            starts[0] = torch.tensor(segment.lengths)
            starts[1] = segment.next_positions
        for buffers, states in ((self.keys, keys), (self.values, values)):
            for buffer, known in zip(buffers, states, strict=True):
                num_known = known.shape[2]
                buffer[:, :, :num_known] = known
                buffer[:, :, num_known:] = 0

    def __call__(self, token_ids: Tensor, num_new: int) -> Tensor:
        """Feed int64 [B], the tokens after ``num_new`` others; return logits, float32 [B, vocab], valid until the next.

        The call does not wait for the device.
        """
        self._tokens.copy_(token_ids[:, None])
        self._num_new.fill_(num_new)
        self._replayed(self._run)
        return self._logits

    def _run(self) -> None:
        """Run the step that is recorded: it uses buffers only, and gives the same result when it runs twice."""
        with self._pool.decoder.attending_by(ONE_TOKEN):
            self._logits.copy_(self._next_logits())

    def _next_logits(self) -> Tensor:
        decoder = self._pool.decoder
        hidden = decoder.embed(self._tokens)
        for index, (start, end, capacity) in enumerate(self.layout.spans):
            layer_types = tuple(dict.fromkeys(decoder.layer_types[start:end]))
            slots, shared = self._pool.begin(decoder, hidden, self._starts[index], self._num_new, capacity, layer_types)
            for layer in range(start, end):
                rope, mask = shared[layer_types.index(decoder.layer_types[layer])]
                block = decoder.text_model.layers[layer]
                positions, keys, values = decoder.position_arguments(rope), self.keys[layer], self.values[layer]
                buffers = keys, values, slots
                hidden = self._pool.run_layer(block, hidden, positions, mask, *buffers, decoder.cache_argument)
        return self._pool.finish(decoder, hidden)


class StepPool:
    """The static steps of a loaded model: those in use, and as many idle ones as a share of the device's memory holds.

    Parameters
    ----------
    decoder : of the loaded model.
    compiled : whether ``torch.compile`` fuses the operations of the step; False records the layers of transformers.
    record : takes a function and returns one that replays it; None records CUDA graphs on a GPU, nothing on a CPU.

    Raises
    ------
    MissingDependency
        If there is no compiler.
    UnsupportedModel
        If a layer keeps a recurrent state, which has no slots to write to, or needs more than the hidden states and its
        slots.
    """

    def __init__(
        self,
        decoder: Decoder,
        compiled: bool = True,
        record: Record | None = None,
        max_idle_bytes: int | None = None,
    ) -> None:
        if not decoder.can_resume(decoder.num_layers):
            raise UnsupportedModel(
                "compile=True is not for models with recurrent (linear attention) layers; load the model without it."
            )
        if not decoder.layers_stand_alone:
            raise UnsupportedModel(
                "compile=True is not for models whose layers share keys and values or have inputs of their own "
                "(per-layer embeddings); load the model without it."
            )
        self.decoder = decoder
        self.record = record or recorder(decoder.device)
        #: Whether a step may be launched before the host has read the last token: on a CPU that saves no time.
        self.runs_ahead = decoder.device.type == "cuda"
        self.begin: Callable[..., tuple[Tensor, list[tuple[Rope, Tensor]]]] = begin
        self.run_layer: Callable[..., Tensor] = run_layer
        self.finish: Callable[..., Tensor] = finish
        if compiled:
            self.begin, self.run_layer, self.finish = (
                fused(function, decoder.device.type) for function in (begin, run_layer, finish)
            )
        self._weights = [*decoder.text_model.parameters(), *decoder.text_model.buffers(), *decoder.lm_head.parameters()]
        if max_idle_bytes is None:
            max_idle_bytes = int(MEMORY_SHARE * total_memory(decoder.device))
        #: The recorded layers of prompts; None if prompts are read as they are.
        self.prompts: RecordedPrompts | None = None
        if recorded_prefill.RECORD_PREFILL:
            self.prompts = RecordedPrompts(decoder, self.record, self.addresses, max_idle_bytes // 2)
            max_idle_bytes -= max_idle_bytes // 2
        self._max_idle_bytes = max_idle_bytes
        self._steps: list[tuple[StaticStep, Callable[[], Any]]] = []

    def take(self, layout: Layout, owner: object) -> StaticStep:
        """Return a step that is reserved for ``owner`` as long as it lives, or until the step is given back."""
        step = next((step for step, user in self._steps if user() is None and step.layout == layout), None)
        self._steps = [entry for entry in self._steps if entry[0] is not step]
        self._drop_idle()
        step = step or StaticStep(self, layout)
        self._steps.append((step, weakref.ref(owner)))
        return step

    def give_back(self, given: StaticStep) -> None:
        """Return a step to the pool."""
        self._steps = [(step, (lambda: None) if step is given else user) for step, user in self._steps]

    def clear(self) -> None:
        """Free the idle steps and what is recorded of prompts. Steps in use go on, and are freed with their owners."""
        self._steps.clear()
        if self.prompts is not None:
            self.prompts.clear()

    @property
    def idle_bytes(self) -> int:
        """Bytes of the steps that no answer uses, and of what is recorded of prompts."""
        prompts = self.prompts.num_bytes if self.prompts is not None else 0
        return prompts + sum(step.num_bytes for step, user in self._steps if user() is None)

    def addresses(self) -> list[int]:
        """Return the addresses of the weights: a recorded step reads them there."""
        return [tensor.data_ptr() for tensor in self._weights]

    def _drop_idle(self) -> None:
        room = self._max_idle_bytes
        kept = []
        for step, user in reversed(self._steps):
            if user() is None:
                room -= step.num_bytes
            if user() is not None or room >= 0:
                kept.append((step, user))
        self._steps = kept[::-1]


class StaticDecoding:
    """The state of the decoding loop on static buffers; it replaces :class:`Decoding`.

    Parameters
    ----------
    pool : of the loaded model.
    prefilled : the prompt's cache and segments; the cache is copied.
    max_new : how many tokens may be fed at most.
    """

    def __init__(self, pool: StepPool, prefilled: Prefilled, max_new: int) -> None:
        self.segments = prefilled.segments
        self.num_new = 0
        self._pool = pool
        self._max_new = max_new
        self._step = pool.take(Layout.of(self.segments, min(max_new, FIRST_ROOM)), self)
        self._step.load(self.segments, *prefilled.cache.keys_and_values(pool.decoder.num_layers))
        self._room = self._step.layout.room(self.segments)

    def step(self, token_ids: Tensor) -> Tensor:
        """Feed one token of each sequence, int64 [B]; return the logits of the next, float32 [B, vocab].

        The next step overwrites them.
        """
        if self.num_new == self._room:
            self._grow()
        logits = self._step(token_ids, self.num_new)
        self.num_new += 1
        return logits

    def read_instead(self, token_ids: Tensor) -> Tensor:
        """Do the same as :meth:`Decoding.read_instead`, without the static step, which feeds one token at a time."""
        cache = KVCache(self._pool.decoder)
        for segment in self.segments:
            num_slots = max(segment.lengths)
            for layer in range(segment.start, segment.end):
                keys, values = self._step.keys[layer], self._step.values[layer]
                cache.update(keys[:, :, :num_slots], values[:, :, :num_slots], layer)
        return Decoding(self._pool.decoder, cache, self.segments).read_instead(token_ids)

    def _grow(self) -> None:
        full = self._step
        self._step = self._pool.take(Layout.of(self.segments, min(self._max_new, 2 * self._room)), self)
        self._step.load(self.segments, full.keys, full.values)
        self._room = self._step.layout.room(self.segments)
        self._pool.give_back(full)
