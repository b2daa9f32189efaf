"""Pillow's scaling of pictures in torch, bit for bit, for pictures that a GPU scales.

Pillow scales one dimension after the other. Each value is a sum of bytes times whole-number weights of 22 bits, rounded
to a byte (``Resample.c`` of Pillow). These sums are the same numbers on any device.
"""

import functools
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tops_engine.dependencies import unsupported_version

#: Fractional bits of Pillow's weights.
PRECISION = 32 - 8 - 2

NEW_ORDER = not unsupported_version("pillow>=13")

Values = np.ndarray[Any, np.dtype[np.float64]]


def _bilinear(x: Values) -> Values:
    return np.clip(1 - np.abs(x), 0, None)


def _bicubic(x: Values) -> Values:
    a, x = -0.5, np.abs(x)
    near, far = ((a + 2) * x - (a + 3)) * x * x + 1, (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1, near, np.where(x < 2, far, 0))


def _lanczos(x: Values) -> Values:
    return np.where((x >= -3) & (x < 3), np.sinc(x) * np.sinc(x / 3), 0)


#: The filters by Pillow's numbers of them, and how far from the centre they are not 0.
FILTERS: dict[int, tuple[Callable[[Values], Values], float]] = {1: (_lanczos, 3), 2: (_bilinear, 1), 3: (_bicubic, 2)}


def pillow_resize(pixels: Tensor, size: tuple[int, int], resample: int) -> Tensor:
    """Scale pictures to the bytes that ``PIL.Image.resize`` gives.

    Parameters
    ----------
    pixels : uint8 [..., height, width].
    size : the new height and width.
    resample : Pillow's number of the filter, one of :data:`FILTERS`.

    Returns
    -------
    uint8 [..., *size], on the device of ``pixels``.
    """
    height, width = pixels.shape[-2:]
    lost = height - size[0]
    # Read off the results of Pillow 13; older versions scale the width first.
    height_first = NEW_ORDER and lost > 0 and lost > 2 * (width - size[1])
    for dim in (-2, -1) if height_first else (-1, -2):
        length = size[dim]
        if pixels.shape[dim] != length:
            pixels = _scaled(pixels, dim, length, resample)
    return pixels


@functools.cache
def equals_pillow() -> bool:
    """Return whether :func:`pillow_resize` gives the installed Pillow's bytes, as small pictures show."""
    pixels = np.random.default_rng(0).integers(0, 256, (24, 20, 3), dtype=np.uint8)
    planes = torch.from_numpy(pixels).permute(2, 0, 1)
    sizes = [(12, 40), (40, 12), (13, 17), (13, 14), (14, 15), (50, 31), (24, 9), (9, 20)]
    for resample, (height, width) in itertools.product(FILTERS, sizes):
        theirs = np.array(Image.fromarray(pixels).resize((width, height), resample))
        if not np.array_equal(pillow_resize(planes, (height, width), resample).permute(1, 2, 0).numpy(), theirs):
            return False
    return True


def _scaled(pixels: Tensor, dim: int, length: int, resample: int) -> Tensor:
    """Scale one dimension, -1 or -2, to a length."""
    indices, weights = (torch.from_numpy(part).to(pixels.device) for part in _taps(pixels.shape[dim], length, resample))
    shape = list(pixels.shape)
    shape[dim] = length
    total = torch.full(shape, 1 << (PRECISION - 1), dtype=torch.int32, device=pixels.device)
    for index, weight in zip(indices, weights, strict=True):
        total += pixels.index_select(dim, index).int() * (weight if dim == -1 else weight[:, None])
    return (total >> PRECISION).clamp_(0, 255).to(torch.uint8)


@functools.lru_cache(maxsize=64)
def _taps(old: int, new: int, resample: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return which old values each new one is a sum of, int64 [taps, new], and their weights, int32 [taps, new]."""
    curve, support = FILTERS[resample]
    scale = old / new
    stretch = max(scale, 1.0)
    support *= stretch
    centre = (np.arange(new) + 0.5) * scale
    first = np.maximum((centre - support + 0.5).astype(np.int64), 0)
    end = np.minimum((centre + support + 0.5).astype(np.int64), old)
    index = first + np.arange(int((end - first).max()))[:, None]
    weight = np.where(index < end, curve((index - centre + 0.5) * (1 / stretch)), 0.0)
    # One after the other, as Pillow adds them: another order rounds differently.
    weight = weight / np.cumsum(weight, axis=0)[-1]
    fixed = np.trunc(weight * (1 << PRECISION) + np.where(weight < 0, -0.5, 0.5)).astype(np.int32)
    return np.minimum(index, old - 1), fixed
