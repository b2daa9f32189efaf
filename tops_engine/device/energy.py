"""The energy that a device has used, where its driver tells."""

import importlib
from pathlib import Path
from typing import Any

import torch

#: Linux's counters of the processors' energy; on most systems only root may read them.
POWERCAP = Path("/sys/class/powercap")


def joules_used(device: torch.device, powercap: Path = POWERCAP) -> float | None:
    """Return a counter of the joules that a device has used; only differences have a meaning.

    For NVIDIA GPUs this asks the driver through the package ``nvidia-ml-py``, for processors it reads Linux's
    counters of Intel's and AMD's packages.

    Returns
    -------
    None where nothing tells.
    """
    return _gpu_joules(device) if device.type == "cuda" else _processor_joules(powercap)


def _gpu_joules(device: torch.device) -> float | None:
    try:
        nvml: Any = importlib.import_module("pynvml")
    except ImportError:
        return None
    try:
        nvml.nvmlInit()
        # Numbers of devices differ between CUDA and the driver; the identifier does not.
        handle = nvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
        return float(nvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1e3  # millijoules
    except (nvml.NVMLError, AttributeError):
        return None


def _processor_joules(powercap: Path) -> float | None:
    # Packages are named intel-rapl:0; their parts (cores, memory), which they contain, intel-rapl:0:0.
    counters = [path / "energy_uj" for path in powercap.glob("intel-rapl:*") if path.name.count(":") == 1]
    try:
        return sum(int(counter.read_text()) for counter in counters) / 1e6 if counters else None
    except (OSError, ValueError):
        return None
