"""Compiling functions and recording their work, on the device the weights are on."""

import functools
import importlib.util
import inspect
import os
import shutil
import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch

from tops_engine.errors import InvalidInput, MissingDependency

#: Takes a function without arguments and returns one that repeats its work on the same tensors.
Record = Callable[[Callable[[], None]], Callable[[], None]]

# The most compiled versions of a function that are kept: for one or several sequences, different layers and models.
MAX_FORMS = 128

# Runs before recording: they compile, and let libraries initialise, which is not allowed while recording.
WARM_UPS = 2


@functools.cache
def fused(function: Callable[..., Any], device_type: str) -> Callable[..., Any]:
    """Return the function so that its first call compiles it, with dynamic shapes and a compilation cache of its own.

    All models in the process share it: a model that is loaded again reuses the compiled version.

    With coordinate descent tuning the compiler writes its own kernel for a product with a single row, which reaches
    the memory bandwidth of a GPU; it has no effect on a CPU.

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
    """Return the function that records work on a device as a CUDA graph; None for a CPU, which cannot record."""
    return functools.partial(_record_cuda_graph, device) if device.type == "cuda" else None


class Replayed:
    """Work on buffers that is recorded when it is first called, and again when the weights that it reads have moved.

    Parameters
    ----------
    record : records the work; None runs it as it is.
    addresses : returns the addresses of the weights.
    """

    def __init__(self, record: Record | None, addresses: Callable[[], Sequence[int]]) -> None:
        self._record = record
        self._addresses = addresses
        self._replay: Callable[[], None] | None = None
        self._recorded_at: Sequence[int] = ()

    def __call__(self, run: Callable[[], None]) -> None:
        """Do the work of ``run``, the same at every call: it uses buffers only, and may run several times."""
        if self._record is None:
            run()
            return
        addresses = self._addresses()
        if self._replay is None or addresses != self._recorded_at:
            self._replay = self._record(run)
            self._recorded_at = addresses
        self._replay()


def _record_cuda_graph(device: torch.device, function: Callable[[], None]) -> Callable[[], None]:
    """Record a function as a CUDA graph. Each graph has its own memory, a few MB, which is freed with the graph.

    The ``reduce-overhead`` mode of torch.compile is not used, because its graphs belong to the thread that recorded
    them: the steps of one answer may come from several threads, one at a time.
    """
    usual, stream = torch.cuda.current_stream(device), _side_stream(device)
    stream.wait_stream(usual)
    with torch.cuda.stream(stream):
        for _ in range(WARM_UPS):
            function()
    usual.wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    # Other threads may use the GPU for other work during the recording.
    with _one_recording, torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
        function()
    return graph.replay


# torch records one graph at a time in a process, on whichever device.
_one_recording = threading.Lock()


@functools.cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """Return the one stream of all recordings on a device, as libraries keep a workspace for each stream."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
