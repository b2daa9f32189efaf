"""The greedy loop as one CUDA kernel that divides an image's tokens over the eight blocks of a cluster.

The Triton kernel (:mod:`tops_engine.selection.greedy_kernel`) gives an image one block, whose instructions limit its
speed (benchmarks/NOTES.md). Blocks of a cluster exchange results through each other's shared memory, which needs
compute capability 9.0 (H100) or newer.
"""

from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from tops_engine.device.nvrtc import is_available, load_kernel

SOURCE = Path(__file__).with_suffix(".cu")
#: The most blocks a cluster has on every GPU that has clusters.
BLOCKS = 8
#: The most threads of a block; more tokens than threads are divided over the threads.
MAX_THREADS = 512


def runs_on(device: torch.device) -> bool:
    """Return whether the GPU has thread block clusters and the kernel can be compiled."""
    return is_available() and torch.cuda.get_device_capability(device) >= (9, 0)


def constants(
    num_tokens: int, *, has_relevance: bool, has_diversity: bool, has_coverage: bool, minmax: bool, blocks: int = BLOCKS
) -> dict[str, int]:
    """Return the values of the kernel's macros. Numbers of tokens up to the same power of two share one kernel."""
    each = max(32, (1 << (num_tokens - 1).bit_length()) // blocks)
    threads = min(each, MAX_THREADS)
    criteria = {"HAS_RELEVANCE": has_relevance, "HAS_DIVERSITY": has_diversity, "HAS_COVERAGE": has_coverage}
    sizes = {"BLOCKS": blocks, "THREADS": threads, "PER_THREAD": -(-each // threads)}
    return sizes | {name: int(value) for name, value in (criteria | {"MINMAX": minmax}).items()}


def finish_selection(
    order: Tensor,
    similarity: Tensor,
    relevance: Tensor | None,
    closest: Tensor,
    coverage: Tensor | None,
    taken: Tensor,
    weights: tuple[float, float],
    rounding: float,
    minmax: bool,
) -> None:
    """Fill ``order`` from its second column on; see :func:`tops_engine.selection.greedy_kernel.finish_selection`."""
    num_images, num_tokens = closest.shape
    nothing = closest  # a placeholder that is not read
    macros = constants(
        num_tokens,
        has_relevance=relevance is not None,
        has_diversity=weights[0] > 0,
        has_coverage=coverage is not None,
        minmax=minmax,
    )
    kernel = load_kernel(_source(), "greedy_cluster", tuple(macros.items()), closest.device.index)
    kernel(
        grid=(BLOCKS * num_images, 1, 1),
        block=(macros["THREADS"], 1, 1),
        args=[
            order,
            similarity.contiguous(),
            nothing if relevance is None else relevance.contiguous(),
            closest,
            nothing if coverage is None else coverage.contiguous(),
            taken.to(torch.int8),
            num_tokens,
            order.shape[1],
            *(float(weight) for weight in weights),
            rounding,
        ],
    )


@cache
def _source() -> str:
    return SOURCE.read_text(encoding="utf-8")
