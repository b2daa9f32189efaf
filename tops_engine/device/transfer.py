"""Bringing data to the device without waiting for the work it has to do already."""

from collections.abc import Sequence

import torch
from torch import Tensor


def to_device(values: Tensor, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """A copy of ``values`` on ``device``, in ``dtype`` if given; ``values`` itself where there is nothing to do.

    From the host to CUDA through pinned memory, because from any other the copy first waits for everything that the
    device was asked to do before; converted there, because what the host converts is in other memory.
    """
    if device.type == "cuda" and values.device.type == "cpu":
        values = values.pin_memory().to(device, non_blocking=True)
    return values.to(device, dtype)


def numbers_on(device: torch.device, numbers: Sequence[int]) -> Tensor:
    """Whole numbers known to the host: int64 [n] on ``device``."""
    return to_device(torch.tensor(numbers, dtype=torch.int64), device)
