"""Compile CUDA C++ when it is first needed, with the compiler library that PyTorch's CUDA builds bring along.

``torch.cuda._compile_kernel`` does the same, but looks for the headers of an installed CUDA toolkit. A machine with
PyTorch alone does not have them, and code without includes does not need them.
"""

import ctypes
from functools import cache
from typing import Any

import torch

from tops_engine.errors import TopsError


class CompilationFailed(TopsError):
    """A CUDA kernel could not be compiled."""


@cache
def is_available() -> bool:
    """Return whether PyTorch is built for CUDA and finds NVRTC."""
    if torch.version.cuda is None:
        return False
    from torch.cuda import _utils

    try:
        _utils._get_nvrtc_library()
    except OSError:
        return False
    return True


def compile_for(library: ctypes.CDLL, source: str, architecture: str, constants: dict[str, int]) -> bytes:
    """Compile CUDA C++ to the binary of an architecture.

    Parameters
    ----------
    library : NVRTC.
    source : code without includes, whose kernels are ``extern "C"``.
    architecture : such as ``sm_90``.
    constants : values of macros.

    Raises
    ------
    CompilationFailed
        With the compiler's own messages.
    """
    program = ctypes.c_void_p()
    options = [f"--gpu-architecture={architecture}", "--std=c++17"]
    options += [f"-D{name}={value}" for name, value in constants.items()]
    encoded = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
    _check(library.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"kernel.cu", 0, None, None))
    try:
        if library.nvrtcCompileProgram(program, len(options), encoded):
            raise CompilationFailed(_read(library, program, "ProgramLog").decode(errors="replace"))
        return _read(library, program, "CUBIN")
    finally:
        library.nvrtcDestroyProgram(ctypes.byref(program))


@cache
def load_kernel(source: str, name: str, constants: tuple[tuple[str, int], ...], device: int) -> Any:
    """Compile a kernel for a GPU and return it; call it with ``grid``, ``block`` and ``args``.

    Raises
    ------
    CompilationFailed
        With the compiler's own messages.
    """
    from torch.cuda import _utils

    major, minor = torch.cuda.get_device_capability(device)
    binary = compile_for(_utils._get_nvrtc_library(), source, f"sm_{major}{minor}", dict(constants))
    with torch.cuda.device(device):
        kernels = _utils._cuda_load_module(binary, [name])
    return kernels[name]  # type: ignore[index]


def _read(library: ctypes.CDLL, program: ctypes.c_void_p, what: str) -> bytes:
    size = ctypes.c_size_t()
    _check(getattr(library, f"nvrtcGet{what}Size")(program, ctypes.byref(size)))
    data = ctypes.create_string_buffer(size.value)
    _check(getattr(library, f"nvrtcGet{what}")(program, data))
    return data.raw


def _check(status: int) -> None:
    if status:
        raise CompilationFailed(f"NVRTC failed with status {status}.")
