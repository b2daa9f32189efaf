"""The memory of a device: its size, the bounds of caches that follow from it, and giving unused memory back."""

import ctypes
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import psutil
import torch

#: Share of the device's memory for the caches of an engine: enough for a few pictures, small beside the model.
MEMORY_SHARE = 0.05

#: The least that the default leaves for caches in main memory, whatever the size of the weights.
MIN_CACHE_BYTES = 2**23

#: Most bytes of scaled and cut pictures: a few of the families that cut them into many tiles.
MAX_PICTURE_BYTES = 2**26


def total_memory(device: torch.device) -> int:
    """Return the size of the device's memory in bytes, used or not."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return psutil.virtual_memory().total


def default_cache_bytes(device: torch.device, weight_bytes: int) -> int:
    """Return how much the caches of an engine may hold if the user sets no bound.

    That is ``MEMORY_SHARE`` of the device's memory; where weights and caches share the main memory, no more than the
    weights themselves, but at least ``MIN_CACHE_BYTES``.
    """
    share = int(MEMORY_SHARE * total_memory(device))
    return share if device.type == "cuda" else min(share, max(weight_bytes, MIN_CACHE_BYTES))


@dataclass(frozen=True)
class CacheLimits:
    """How many bytes each cache of an engine may hold.

    Attributes
    ----------
    pictures : scaled and cut pictures, in main memory.
    encoded : the visual tokens of earlier pictures and videos.
    prompts : keys and values of earlier prompts.
    steps : buffers of recorded steps that no answer uses (``compile=True``).
    """

    pictures: int
    encoded: int
    prompts: int
    steps: int

    @classmethod
    def of(cls, total: int, compiles: bool) -> Self:
        """Divide ``total`` bytes.

        Pictures get a quarter at most and steps half of the rest. Of what then remains, a quarter is for encoded
        pictures: the keys and values of a prompt take several times the bytes of its visual tokens.
        """
        pictures = min(total // 4, MAX_PICTURE_BYTES)
        steps = (total - pictures) // 2 if compiles else 0
        encoded = (total - pictures - steps) // 4
        return cls(pictures, encoded, total - pictures - steps - encoded, steps)


def is_out_of_memory(error: RuntimeError) -> bool:
    """Return whether an error says that a device has too little memory; torch has no type for that of a CPU."""
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator: can't allocate memory" in str(error)


def give_back_memory(device: torch.device) -> None:
    """Return memory that is free inside the process to the system: torch's blocks, and on Linux those of malloc."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()
    if sys.platform == "linux":
        # Part of glibc only; free() alone keeps most of it for later allocations.
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


class PeakMemory:
    """The peak of memory since it was made: of torch on a GPU, of the process on Linux.

    Attributes
    ----------
    num_bytes : the peak; None on systems that do not tell it.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._known = True
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            return
        try:
            # Resets the peak (man 5 proc).
            Path("/proc/self/clear_refs").write_text("5")
        except OSError:
            self._known = False

    @property
    def num_bytes(self) -> int | None:
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device)
        if not self._known:
            return None
        lines = Path("/proc/self/status").read_text().splitlines()
        peak = next((line for line in lines if line.startswith("VmHWM:")), None)
        return 1024 * int(peak.split()[1]) if peak is not None else None
