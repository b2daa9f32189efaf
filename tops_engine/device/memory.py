"""The size of a device's memory, from which the sizes of caches follow."""

import psutil
import torch

#: Share of the device's memory for each cache: enough for keys and values of a few pictures, small beside the model.
MEMORY_SHARE = 0.05


def total_memory(device: torch.device) -> int:
    """Return the size of the device's memory in bytes, used or not."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return psutil.virtual_memory().total
