"""A model on this machine: its weights, what is kept of earlier prompts, and the lock of its device."""

import threading
import traceback
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch

from tops_engine.device.machine import machine
from tops_engine.device.memory import CacheLimits, default_cache_bytes, give_back_memory, is_out_of_memory
from tops_engine.errors import OutOfMemory
from tops_engine.families import Family
from tops_engine.generation.encoded_pictures import EncodedPictures
from tops_engine.generation.prefix_cache import PrefixCache
from tops_engine.generation.static import StepPool
from tops_engine.loading import is_quantised, load_family, resolve_device
from tops_engine.settings import ModelSpec

# One lock per device orders the work of all engines on it. It is held for one step (reading a prompt, writing a token),
# not for a whole answer: several streams advance side by side, and an abandoned stream blocks nothing.
_device_locks: dict[torch.device, threading.RLock] = defaultdict(threading.RLock)


class LoadedModel:
    """The part of an engine that holds the model and the memory of its device.

    Parameters
    ----------
    spec : which checkpoint to load, where and how.

    Raises
    ------
    InvalidInput
        If the machine does not have the device.
    """

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec
        self.device = resolve_device(spec.device)
        self._lock = _device_locks[self.device]
        self._family: Family | None = None
        self._prefixes = PrefixCache(max_bytes=0)  # the bound follows when the size of the weights is known
        self._encoded = EncodedPictures(max_bytes=0)
        self._pool: StepPool | None = None

    def unload(self) -> None:
        """Free the memory of the model; the next question loads it again."""
        with self._working():
            self._drop_states()
            self._family = self._pool = None
        give_back_memory(self.device)

    def offload(self) -> None:
        """Move the weights to main memory; the next question moves them back to the device.

        Quantised weights are tied to their device and are unloaded instead.
        """
        with self._working():
            self._drop_states()
            if self._family is not None and self.is_quantised:
                self._family = self._pool = None
            elif self._family is not None:
                self._family.to(torch.device("cpu"))
        give_back_memory(self.device)

    def load_at_rest(self) -> Family:
        """Return the loaded model without moving its weights; a model that is not loaded goes to main memory.

        Use this in a host that decides itself when weights move to the device, as ComfyUI does. Quantised weights are
        tied to their device and load there.
        """
        with self._working():
            if self._family is None:
                return self.use(load_family(self.spec, None if self.is_quantised else torch.device("cpu")))
            return self._family

    @cached_property
    def is_quantised(self) -> bool:
        """Whether the weights are quantised, by the spec or in the checkpoint, so that they stay where they load."""
        return is_quantised(self.spec)

    @property
    def family(self) -> Family:
        """The loaded model; it loads at the first use."""
        with self._working():
            return self._ready_family()

    @contextmanager
    def working_family(self) -> Iterator[Family]:
        """Hold the device in a block, and give it the loaded model; for work that is no answer.

        Raises
        ------
        OutOfMemory
            If the device has too little memory for the block.
        """
        with self._working():
            yield self._ready_family()

    @property
    def cost_key(self) -> dict[str, Any]:
        """What the speed of the model depends on: what was loaded how, the device and its threads."""
        facts = machine(str(self.device))
        on = {name: facts[name] for name in ("cpu", "threads", "torch", "gpu") if name in facts}
        options = self.spec.model_dump(mode="json", exclude={"device", "dtype", "cache_mb"})
        return options | {"device": self.device.type, "dtype": str(self.family.decoder.dtype)} | on

    @property
    def is_loaded(self) -> bool:
        """Whether the weights are on the device now."""
        return self._family is not None and self._family.decoder.device == self.device

    def forget(self) -> None:
        """Drop what was kept of earlier prompts, so that the next prompt is read from its beginning.

        Otherwise a prompt about pictures that were asked about before is read from where the two prompts differ.
        """
        with self._working():
            self._drop_states()
            if self._family is not None:
                self._family.forget_pictures()
        give_back_memory(self.device)

    @property
    def cache_bytes(self) -> int:
        """Bytes that are kept of earlier prompts and pictures; ``ModelSpec(cache_mb=...)`` bounds them."""
        with self._lock:
            pictures = self._family.picture_bytes if self._family is not None else 0
            steps = self._pool.idle_bytes if self._pool is not None else 0
            return pictures + self._encoded.num_bytes + self._prefixes.num_bytes + steps

    def _ready_family(self) -> Family:
        """Return the family with its weights on the device; call this with the lock of the device held."""
        if self._family is None:
            return self.use(load_family(self.spec))
        if self._family.decoder.device != self.device:
            self._family.to(self.device)
        return self._family

    def use(self, family: Family) -> Family:
        """Use a family that was loaded for this engine's spec, and bound its caches."""
        limits = self._cache_limits(family)
        family.limit_pictures(limits.pictures)
        self._encoded.limit(limits.encoded)
        self._prefixes.limit(limits.prompts)
        self._family = family
        return family

    def _cache_limits(self, family: Family) -> CacheLimits:
        if self.spec.cache_mb is not None:
            return CacheLimits.of(int(self.spec.cache_mb * 2**20), self.spec.compile)
        return CacheLimits.of(default_cache_bytes(self.device, family.weight_bytes), self.spec.compile)

    def _step_pool(self, family: Family) -> StepPool | None:
        """Return the recorded steps of the loaded model, None unless the spec compiles."""
        if self.spec.compile and (self._pool is None or self._pool.decoder is not family.decoder):
            self._pool = StepPool(family.decoder, max_idle_bytes=self._cache_limits(family).steps)
        return self._pool

    def _drop_states(self) -> None:
        """Drop everything that earlier prompts left on the device."""
        self._encoded.clear()
        self._prefixes.clear()
        if self._pool is not None:
            self._pool.clear()

    @contextmanager
    def _working(self) -> Iterator[None]:
        """Hold the lock of the device; turn a lack of memory into an OutOfMemory error that keeps no tensors alive."""
        with self._lock:
            try:
                yield
            except (torch.OutOfMemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                # The frames of the failed call hold its tensors.
                traceback.clear_frames(error.__traceback__)
                self._drop_states()
                give_back_memory(self.device)
                raise OutOfMemory(
                    f"{self.device} ran out of memory; send fewer or smaller pictures, keep fewer tokens, "
                    "or load the model quantised."
                ) from None
