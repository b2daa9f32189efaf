"""The keys, values and recurrent states of each layer, each layer with its own number of tokens; and the masks."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from tops_engine.families import Decoder

# Slots added when a layer is full: the old ones are copied once for this many new tokens.
GROWTH = 256


class KVCache:
    """A per-layer cache that decoder layers of transformers fill through ``update``.

    Batches are padded on the right while the prompt is read, so that causal attention needs no mask: the padding comes
    after everything a real token may see. New tokens follow in the next slots, and :func:`decode_mask` hides the holes.
    Recurrent states have no slots: the prompts of a batch that differ in length are read one by one (:meth:`join`).
    A layer that reads the keys and values of an earlier layer gets those of the tokens that remain in it. As long as
    these are all, it reads the earlier layer's own; behind a stage, the layers of a segment share a copy
    (:meth:`keep`), which new tokens are appended to.

    Parameters
    ----------
    decoder : says what each layer keeps.

    Attributes
    ----------
    states : recurrent states, in a ``Cache`` of transformers; None where no layer keeps one.
    """

    def __init__(self, decoder: Decoder) -> None:
        self._sources = [decoder.source_layer(layer) for layer in range(decoder.num_layers)]
        #: The layer in whose place the keys and values stand that each layer reads.
        self._holders = list(self._sources)
        #: How many slots of the source a copy has followed, by the layer in whose place it stands.
        self._followed: dict[int, int] = {}
        self._keys: list[Tensor | None] = [None] * decoder.num_layers
        self._values: list[Tensor | None] = [None] * decoder.num_layers
        self._num_slots = [0] * decoder.num_layers
        self.states = decoder.new_states()
        self._states_before = self.states

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: object, **__: object
    ) -> tuple[Tensor, Tensor]:
        """Append [B, heads, q, head_dim] to a layer, and return all of its keys and values."""
        start = self._num_slots[layer_idx]
        end = start + key_states.shape[2]
        self._num_slots[layer_idx] = end
        keys = self._keys[layer_idx] = _with_room(self._keys[layer_idx], key_states, start, end)
        values = self._values[layer_idx] = _with_room(self._values[layer_idx], value_states, start, end)
        keys[:, :, start:end] = key_states
        values[:, :, start:end] = value_states
        return keys[:, :, :end], values[:, :, :end]

    def keys(self, layer: int) -> Tensor:
        """Return the keys that layer ``layer`` reads: [B, heads, slots, head_dim]."""
        return self.read(layer)[0]

    def read(self, layer: int) -> tuple[Tensor, Tensor]:
        """Return the keys and values that layer ``layer`` reads, each [B, heads, slots, head_dim]."""
        holder, source = self._holders[layer], self._sources[layer]
        if holder != source and self._followed[holder] < self._num_slots[source]:
            new = slice(self._followed[holder], None)
            keys, values = self._slots(source)
            self.update(keys[:, :, new], values[:, :, new], holder)
            self._followed[holder] = self._num_slots[source]
        return self._slots(holder)

    def keep(self, layer: int, index: Tensor) -> None:
        """From ``layer`` on, let layers that read those of an earlier layer read copies for the remaining tokens.

        Parameters
        ----------
        index : int64 [B, n], the slots that remain of those before ``layer``, padded on the right.
        """
        readers = [later for later in range(layer, len(self._sources)) if self._sources[later] < min(later, layer)]
        for source in sorted({self._sources[reader] for reader in readers}):
            of_source = [reader for reader in readers if self._sources[reader] == source]
            first = of_source[0]
            keys, values = (
                store.gather(2, index[:, None, :, None].expand(-1, store.shape[1], -1, store.shape[3]))
                for store in self.read(first)
            )
            self._keys[first], self._values[first], self._num_slots[first] = keys, values, index.shape[1]
            self._followed[first] = self._num_slots[source]
            for reader in of_source:
                self._holders[reader] = first

    def _slots(self, layer: int) -> tuple[Tensor, Tensor]:
        keys, values, end = self._keys[layer], self._values[layer], self._num_slots[layer]
        assert keys is not None
        assert values is not None
        return keys[:, :, :end], values[:, :, :end]

    def keys_and_values(self, end: int) -> tuple[list[Tensor], list[Tensor]]:
        """Return keys and values of layers [0, end), each [B, heads, slots, head_dim], as they are now."""
        layers = range(end)
        keys = [store[:, :, : self._num_slots[layer]] for layer in layers if (store := self._keys[layer]) is not None]
        values = [
            store[:, :, : self._num_slots[layer]] for layer in layers if (store := self._values[layer]) is not None
        ]
        return keys, values

    def load(self, keys: Sequence[Tensor], values: Sequence[Tensor], num_slots: int, first: int = 0) -> None:
        """Set layers from ``first`` on to the first ``num_slots`` slots of keys and values, which are not changed."""
        for layer, (layer_keys, layer_values) in enumerate(zip(keys, values, strict=True), start=first):
            self._keys[layer] = layer_keys[:, :, :num_slots]
            self._values[layer] = layer_values[:, :, :num_slots]
            self._num_slots[layer] = num_slots

    def join(self, layer: int, sequences: "Sequence[KVCache]") -> None:
        """Take the recurrent state of layer ``layer`` from caches of one sequence each."""
        first, *others = (sequence.states.layers[layer] for sequence in sequences if sequence.states is not None)
        for name in ("conv_states", "recurrent_states"):
            states = getattr(first, name)
            for key, state in states.items():
                if state is not None:
                    states[key] = torch.cat([state, *(getattr(other, name)[key] for other in others)])
        assert self.states is not None
        self.states.layers[layer] = first

    def mark(self) -> None:
        """Remember the recurrent states as they are now, for :meth:`rewind`."""
        self._states_before = copy.deepcopy(self.states)

    def rewind(self, num_new: int) -> None:
        """Forget the last ``num_new`` tokens of every layer: all of those since :meth:`mark`."""
        self._num_slots = [slots - num_new for slots in self._num_slots]
        self._followed = {layer: slots - num_new for layer, slots in self._followed.items()}
        self.states = copy.deepcopy(self._states_before)


def _with_room(store: Tensor | None, states: Tensor, start: int, end: int) -> Tensor:
    if store is not None and end <= store.shape[2]:
        return store
    batch, heads, _, head_dim = states.shape
    grown = states.new_empty(batch, heads, end + GROWTH, head_dim)
    if store is not None:
        grown[:, :, :start] = store[:, :, :start]
    return grown


def prefill_mask(
    decoder: Decoder, layer_type: str, like: Tensor, num_known: int = 0, pictures: Tensor | None = None
) -> Tensor | None:
    """Return the mask of right-padded prompts, None where the kernel's own causal flag is enough.

    Parameters
    ----------
    layer_type : of the layers that use the mask.
    like : [B, n - known, d], the tokens that attend; the mask takes its device and dtype.
    num_known : tokens at the prompt's beginning that are in the cache already and do not attend.
    pictures : int64 [B, n], as :meth:`Decoder.visible` takes it.

    Returns
    -------
    bool [1 or B, 1, n - known, n] for SDPA, additive for eager, None where causal attention needs no mask.
    """
    # Flash attention has windows of its own, and aligns the last query with the last key.
    if decoder.attention.startswith("flash"):
        return None
    num_tokens, window = num_known + like.shape[1], decoder.sliding_window(layer_type)
    slides = window is not None and num_tokens > window
    causal = pictures is None or not decoder.attends_both_ways(layer_type)
    if decoder.attention == "sdpa" and not slides and not num_known and causal:
        return None
    slots = torch.arange(num_tokens, device=like.device)
    visible = decoder.visible(layer_type, slots[num_known:], slots, pictures)
    return _as_mask(visible.view(-1, 1, *visible.shape[-2:]), decoder.attention, like)


def decode_mask(
    lengths: Sequence[int],
    num_prefill_slots: int,
    num_new: int,
    window: int | None,
    attention: str,
    like: Tensor,
    num_asking: int = 1,
) -> Tensor | None:
    """Return the mask of each sequence's new tokens, over prompt slots, holes and new slots: None if all are visible.

    Parameters
    ----------
    lengths : prompt tokens of each sequence in this layer; slots from there to ``num_prefill_slots`` are holes.
    num_new : tokens generated so far, those that attend included.
    num_asking : how many of them attend: the last ones.

    Returns
    -------
    bool [B, 1, asking, slots] for SDPA, additive for eager, int [B, slots] for flash attention (which is causal and has
    windows of its own), or None.
    """
    flash = attention.startswith("flash")
    ragged = min(lengths) < num_prefill_slots
    window = window if window is not None and max(lengths) + num_new > window and not flash else None
    if not ragged and window is None and (flash or num_asking == 1):
        return None
    length = torch.tensor(lengths, device=like.device)[:, None, None]
    slots = torch.arange(num_prefill_slots + num_new, device=like.device)
    new = slots >= num_prefill_slots
    if flash:
        return ((slots < length) | new)[:, 0].int()
    asking = torch.arange(num_new - num_asking, num_new, device=like.device)[:, None]
    visible = (slots < length) | (new & (slots <= num_prefill_slots + asking))
    if window is not None:
        rank = torch.where(new, slots - num_prefill_slots + length, slots)
        visible &= rank > length + asking - window
    return _as_mask(visible[:, None], attention, like)


def slot_mask(slots: Tensor, capacity: int, window: int | None, like: Tensor) -> Tensor:
    """Return the mask of one token of each sequence over buffers in which a token's slot is its number.

    It is additive for SDPA as well, which would convert a boolean mask to an additive one in each layer.

    Parameters
    ----------
    slots : int64 [B], of the tokens that attend: they see themselves and the tokens before them.
    capacity : slots of the buffers.

    Returns
    -------
    [B, 1, 1, capacity] in the dtype of ``like``.
    """
    seen = torch.arange(capacity, device=slots.device)
    visible = seen <= slots[:, None]
    if window is not None:
        visible &= seen > slots[:, None] - window
    return _as_mask(visible[:, None, None], "additive", like)


def _as_mask(visible: Tensor, attention: str, like: Tensor) -> Tensor:
    if attention == "sdpa":
        return visible
    return torch.zeros_like(visible, dtype=like.dtype).masked_fill(~visible, torch.finfo(like.dtype).min)
