"""Compiling functions and recording their work, on the device the weights are on."""

import functools
import importlib.util
import inspect
import os
import shutil
import threading
from collections.abc import Callable
from typing import Any

import torch

from tops_engine.errors import InvalidInput, MissingDependency

#: Makes of a function without arguments what does its work again on the same tensors.
Record = Callable[[Callable[[], None]], Callable[[], None]]

# Forms of a function that are kept compiled: for one sequence, for several, for layers and models that differ.
MAX_FORMS = 128

# Runs before recording: they compile, and let libraries set themselves up, which is not allowed while recording.
WARM_UPS = 2


@functools.cache
def fused(function: Callable[..., Any], device_type: str) -> Callable[..., Any]:
    """The function compiled at its first call, with shapes left open, apart from what others compile.

    It is the same for all models in the process: one that was unloaded and comes back finds its form compiled.

    With coordinate descent a product with a single row becomes one of the compiler's own kernels, which is where a GPU
    reaches its memory's bandwidth; it has no effect on a CPU.

    Raises
    ------
    InvalidInput
        If torch does not compile for the device.
    MissingDependency
        If there is no compiler.
    """
    if device_type not in ("cpu", "cuda"):
        raise InvalidInput(f"compile=True is for CUDA and the CPU, not for {device_type!r}; leave it out.")
    if device_type == "cuda" and importlib.util.find_spec("triton") is None:
        raise MissingDependency("compile=True needs triton on a GPU: pip install triton.")
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        raise MissingDependency(f"compile=True needs a C++ compiler and there is no {compiler!r}: apt install g++.")
    apart: dict[str, Any] = {}
    if "isolate_recompiles" in inspect.signature(torch.compile).parameters:
        apart = {"isolate_recompiles": True, "recompile_limit": MAX_FORMS}
    else:
        # Older torch (2.11) has one limit for all, and reaching it is an error.
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, MAX_FORMS)
    return torch.compile(function, fullgraph=True, dynamic=True, options={"coordinate_descent_tuning": True}, **apart)


def recorder(device: torch.device) -> Record | None:
    """How work on a device is recorded: as a CUDA graph; None for a CPU, which has nothing of the kind."""
    return functools.partial(_record_cuda_graph, device) if device.type == "cuda" else None


def _record_cuda_graph(device: torch.device, function: Callable[[], None]) -> Callable[[], None]:
    """Each graph has its memory to itself: a few MB, and it goes with the graph.

    Recorded by hand rather than by torch.compile's ``reduce-overhead``, whose graphs belong to the thread that recorded
    them: the steps of one answer may come from several threads, one at a time.
    """
    usual, stream = torch.cuda.current_stream(device), _side_stream(device)
    stream.wait_stream(usual)
    with torch.cuda.stream(stream):
        for _ in range(WARM_UPS):
            function()
    usual.wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    # Other threads may use the GPU for something else meanwhile.
    with _one_recording, torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
        function()
    return graph.replay


# torch records one graph at a time in a process, on whichever device.
_one_recording = threading.Lock()


@functools.cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """One for all recordings on a device, which take turns: libraries keep work space for every stream they saw."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
