"""Simulate a CUDA graph on a CPU: record the operations of a function once and run them again on the same tensors.

A replay does not run the Python code of the recorded function: Python numbers keep their recorded values. The tape
refuses what a CUDA graph cannot record: values that the host reads, and tensors that come from the host.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

REFUSED = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.lift_fresh.default)


class Tape:
    """A recorder of functions for :class:`StepPool`, which counts them."""

    def __init__(self) -> None:
        self.num_recorded = 0
        self.num_replayed = 0

    def __call__(self, function: Callable[[], None]) -> Callable[[], None]:
        self.num_recorded += 1
        with _Recording() as recording:
            function()

        def replay() -> None:
            self.num_replayed += 1
            for operation, args, kwargs, before in recording.calls:
                for old, new in zip(tree_leaves(before), tree_leaves(operation(*args, **kwargs)), strict=True):
                    if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
                        old.copy_(new)

        return replay


class _Recording(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[tuple[Callable[..., Any], Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func not in REFUSED, f"a CUDA graph cannot hold {func}"
        result = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, result))
        return result
