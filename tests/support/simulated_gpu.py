"""Simulate a GPU: tensors report ``cuda:0`` as device, compute on the CPU, and record when the host would wait.

On CUDA the host waits when it reads a value, copies to the host, copies from memory that is not pinned, or runs an
operation whose result's shape depends on data.
"""

import re
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed.tensor  # torch imports it later, while the simulation stands in for its names
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("cuda:0")

#: Operations whose result's shape depends on data, or that read values.
WAITS = (
    "_local_scalar_dense nonzero masked_select unique _unique _unique2 unique_consecutive unique_dim bincount equal "
    "multinomial is_nonzero repeat_interleave"
).split()


#: Modules whose lines are reported.
MODULES = re.compile(r"/tops_engine/(?!.*tests)|/transformers/models/|/vision_utils")


class OnDevice(torch.Tensor):
    """A tensor of the simulated GPU; ``held`` contains its values."""

    held: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> "OnDevice":
        # A meta tensor for torch's C++ code, so that it calls no driver.
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=torch.device("meta"),
        )
        made.held = inner
        return made

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"OnDevice({self.held!r})"

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return DEVICE

    @property
    def is_cuda(self) -> bool:  # type: ignore[override]
        return True

    def tolist(self) -> Any:
        return self.cpu().tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        return _run(func, args, kwargs or {}, None)


class SimulatedGPU(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A context in which ``cuda:0`` exists.

    Attributes
    ----------
    waits : the operations that made the host wait, in order.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.waits: list[str] = []
        self._pinned: list[Tensor] = []
        self._patches = ExitStack()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {}, self)

    def __enter__(self) -> "SimulatedGPU":
        replaced = {"Event": Event, "_lazy_init": _nothing, "current_stream": _nothing, "synchronize": _nothing}
        for name, substitute in replaced.items():
            self._patches.enter_context(mock.patch.object(torch.cuda, name, substitute))
        self._patches.enter_context(mock.patch.object(torch, "Generator", partial(_generator, torch.Generator)))
        # Where Triton is installed its kernel would be launched, which needs a driver.
        self._patches.enter_context(mock.patch("tops_engine.selection.greedy.KERNEL_TOKENS", 0))
        torch._C._set_only_lift_cpu_tensors(True)
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        torch._C._set_only_lift_cpu_tensors(False)
        self._patches.close()

    def pin(self, tensor: Tensor) -> Tensor:
        self._pinned.append(tensor.clone())
        return self._pinned[-1]

    def is_pinned(self, tensor: Tensor) -> bool:
        return any(tensor.data_ptr() == pinned.data_ptr() for pinned in self._pinned)


def move_to_gpu(module: nn.Module) -> None:
    """Move a module's weights to the simulated GPU."""
    moved: dict[int, nn.Parameter] = {}
    for part in module.modules():
        for name, weight in part._parameters.items():
            if weight is not None:
                moved.setdefault(id(weight), nn.Parameter(OnDevice(weight.data), requires_grad=False))
                part._parameters[name] = moved[id(weight)]
        for name, values in part._buffers.items():
            if values is not None:
                part._buffers[name] = OnDevice(values)


def _run(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], gpu: SimulatedGPU | None) -> Any:
    name = func.__name__.split(".")[0]
    given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    from_device = any(isinstance(tensor, OnDevice) for tensor in given)
    if gpu is not None and name == "_pin_memory":
        return gpu.pin(args[0])
    if gpu is not None and name == "is_pinned":
        return gpu.is_pinned(args[0])
    asked = kwargs.get("device")
    to_device = from_device if asked is None else torch.device(asked).type != "cpu"
    if gpu is not None:
        for wait in _waits(name, args, kwargs, from_device, to_device, gpu):
            gpu.waits.append(f"{func} {wait} {_caller()}")
    if asked is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    plain_args, plain_kwargs = tree_map(_inner, (tuple(args), dict(kwargs)))
    result = func(*plain_args, **plain_kwargs)
    if not to_device:
        return result
    wrapped = tree_map(lambda leaf: OnDevice(leaf) if isinstance(leaf, Tensor) else leaf, result)
    if not from_device:
        return wrapped
    return return_and_correct_aliasing(func, tuple(args), dict(kwargs), wrapped)  # type: ignore[no-untyped-call]


def _inner(leaf: Any) -> Any:
    return leaf.held if isinstance(leaf, OnDevice) else leaf


def _waits(
    name: str, args: Sequence[Any], kwargs: Mapping[str, Any], from_device: bool, to_device: bool, gpu: SimulatedGPU
) -> Iterator[str]:
    if from_device and name in WAITS:
        yield "its result has to be known to the host"
    if name == "_to_copy" and from_device != to_device:
        converts = kwargs.get("dtype") not in (None, args[0].dtype)
        yield from _copy_waits(args[0], to_device, kwargs.get("non_blocking", False), converts, gpu)
    if name == "copy_" and isinstance(args[0], OnDevice) != isinstance(args[1], OnDevice):
        converts = args[0].dtype != args[1].dtype
        yield from _copy_waits(args[1], isinstance(args[0], OnDevice), len(args) > 2 and args[2], converts, gpu)
    if name in ("index", "index_put", "index_put_") and isinstance(args[0], OnDevice):
        for index in args[1]:
            if index is not None and index.dtype in (torch.bool, torch.uint8):
                yield "a mask as an index"
            if index is not None and not isinstance(index, OnDevice):
                yield "an index on the host"


def _copy_waits(
    source: Tensor, to_device: bool, non_blocking: bool, converts: bool, gpu: SimulatedGPU
) -> Iterator[str]:
    if not to_device:
        if not non_blocking:  # else torch copies into pinned memory, and an event reports the end of the copy
            yield "copies to the host"
    elif not non_blocking:
        yield f"copies {list(source.shape)} from the host"
    elif converts or not gpu.is_pinned(source):
        yield f"copies {list(source.shape)} from memory that is not pinned"


def _caller() -> str:
    """Return the lines of the engine and of models on the call stack, innermost first."""
    frames = [frame for frame in traceback.extract_stack() if MODULES.search(frame.filename)]
    return " < ".join(f"{Path(frame.filename).name}:{frame.lineno} ({frame.name})" for frame in reversed(frames[-4:]))


def _nothing(*_: Any) -> None: ...


def _generator(made: type[torch.Generator], *_: Any) -> torch.Generator:
    return made()


class Event:
    """A replacement of ``torch.cuda.Event`` that takes no time."""

    def __init__(self, **_: Any) -> None: ...

    def record(self, *_: Any) -> None: ...

    def synchronize(self) -> None: ...

    def elapsed_time(self, _other: "Event") -> float:
        return 0.0
