"""Keys and values of every layer, each layer with its own number of tokens."""

from collections.abc import Sequence

import torch
from torch import Tensor

# Slots added when a layer is full: the copy of the old ones is paid once in so many tokens.
GROWTH = 256


class KVCache:
    """A per-layer cache that decoder layers of transformers fill through ``update``.

    Batches are padded on the right while the prompt is read, so that causal attention needs no mask: the padding comes
    after everything a real token may see. New tokens follow in the next slots, and :meth:`decode_mask` hides the holes.

    Parameters
    ----------
    num_layers : of the decoder.
    """

    def __init__(self, num_layers: int) -> None:
        self._keys: list[Tensor | None] = [None] * num_layers
        self._values: list[Tensor | None] = [None] * num_layers
        self._num_slots = [0] * num_layers

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: object, **__: object
    ) -> tuple[Tensor, Tensor]:
        """Append [B, heads, q, head_dim] to a layer; returns all of its keys and values."""
        start = self._num_slots[layer_idx]
        end = start + key_states.shape[2]
        self._num_slots[layer_idx] = end
        keys = self._keys[layer_idx] = _with_room(self._keys[layer_idx], key_states, start, end)
        values = self._values[layer_idx] = _with_room(self._values[layer_idx], value_states, start, end)
        keys[:, :, start:end] = key_states
        values[:, :, start:end] = value_states
        return keys[:, :, :end], values[:, :, :end]

    def keys(self, layer: int) -> Tensor:
        """What layer ``layer`` holds: [B, heads, slots, head_dim]."""
        keys = self._keys[layer]
        assert keys is not None
        return keys[:, :, : self._num_slots[layer]]

    def states(self, end: int) -> tuple[list[Tensor], list[Tensor]]:
        """Keys and values of layers [0, end), each [B, heads, slots, head_dim]: views that later tokens leave alone."""
        layers = range(end)
        keys = [store[:, :, : self._num_slots[layer]] for layer in layers if (store := self._keys[layer]) is not None]
        values = [
            store[:, :, : self._num_slots[layer]] for layer in layers if (store := self._values[layer]) is not None
        ]
        return keys, values

    def load(self, keys: Sequence[Tensor], values: Sequence[Tensor], num_slots: int) -> None:
        """Begin the first layers with the first ``num_slots`` keys and values of other ones, which are left alone."""
        for layer, (layer_keys, layer_values) in enumerate(zip(keys, values, strict=True)):
            self._keys[layer] = layer_keys[:, :, :num_slots]
            self._values[layer] = layer_values[:, :, :num_slots]
            self._num_slots[layer] = num_slots

    def rewind(self, num_new: int) -> None:
        """Forget the last ``num_new`` tokens of every layer."""
        self._num_slots = [slots - num_new for slots in self._num_slots]


def _with_room(store: Tensor | None, states: Tensor, start: int, end: int) -> Tensor:
    if store is not None and end <= store.shape[2]:
        return store
    batch, heads, _, head_dim = states.shape
    grown = states.new_empty(batch, heads, end + GROWTH, head_dim)
    if store is not None:
        grown[:, :, :start] = store[:, :, :start]
    return grown


def prefill_mask(
    num_tokens: int, window: int | None, attention: str, like: Tensor, num_known: int = 0
) -> Tensor | None:
    """The mask of a right-padded prompt of ``num_tokens``: None where the kernel's own causal flag says it all.

    Parameters
    ----------
    num_known : tokens at the prompt's beginning that are in the cache already and do not ask.
    window : the layer's sliding window, None for full attention.
    attention : the model's attention implementation.
    like : a tensor whose device and dtype the mask takes.

    Returns
    -------
    bool [1, 1, n - known, n] for SDPA, additive for eager, None where causal attention needs no mask.
    """
    # Flash attention has windows of its own, and aligns the last query with the last key.
    if attention.startswith("flash"):
        return None
    window = window if window is not None and num_tokens > window else None
    if attention == "sdpa" and window is None and not num_known:
        return None
    slots = torch.arange(num_tokens, device=like.device)
    asking = slots[num_known:, None]
    visible = slots <= asking
    if window is not None:
        visible &= slots > asking - window
    return _as_mask(visible[None, None], attention, like)


def decode_mask(
    lengths: Sequence[int],
    num_prefill_slots: int,
    num_new: int,
    window: int | None,
    attention: str,
    like: Tensor,
    num_asking: int = 1,
) -> Tensor | None:
    """The mask of new tokens of each sequence, over prompt slots, holes and new slots: None when all are visible.

    Parameters
    ----------
    lengths : prompt tokens of each sequence in this layer; slots from there to ``num_prefill_slots`` are holes.
    num_new : tokens generated so far, the ones that ask included.
    num_asking : how many of them ask: the last ones.

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
    """The mask of one token of each sequence over buffers in which a token's slot is its number.

    Additive for SDPA as well, which would turn a boolean one into this in each layer.

    Parameters
    ----------
    slots : int64 [B], of the asking tokens: they see themselves and what is before them.
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
