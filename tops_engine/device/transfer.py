"""Copy data to the device without waiting for the work that is queued on it."""

from collections.abc import Sequence

import torch
from torch import Tensor


def to_device(values: Tensor, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """Return a copy of ``values`` on ``device``, in ``dtype`` if given; ``values`` itself if nothing changes.

    The copy from the host to CUDA uses pinned memory, because from other memory it first waits for all earlier work of
    the device. The device converts the dtype, because a conversion on the host writes to memory that is not pinned.
    """
    if device.type == "cuda" and values.device.type == "cpu":
        values = values.pin_memory().to(device, non_blocking=True)
    return values.to(device, dtype)


def numbers_on(device: torch.device, numbers: Sequence[int]) -> Tensor:
    """Return integers of the host as an int64 tensor [n] on ``device``."""
    return to_device(torch.tensor(numbers, dtype=torch.int64), device)
