"""The driver of the interpreter: tensors on the CPU."""

from typing import Any

import torch
from triton.backends import driver
from triton.backends.compiler import GPUTarget


class CPUDriver(driver.DriverBase):
    @classmethod
    def is_active(cls) -> bool:
        return True

    def map_python_to_cpp_type(self, ty: str) -> str:
        return ty

    def get_current_target(self) -> Any:
        return GPUTarget("cpu", 0, 1)

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def get_benchmarker(self) -> Any:
        raise NotImplementedError("The interpreter measures nothing.")
