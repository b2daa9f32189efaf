"""The steps of transformers' image processors on the CPU, with equal results in less time.

Resizing stays with Pillow: its results are the published ones. PyTorch's own resizing of bytes takes a fifth of the
time, but differs by a grey level or more in some pixels.
"""

import functools
from collections.abc import Iterable
from typing import Any

import numpy as np
from transformers.image_processing_backends import PilBackend

Array = np.ndarray[Any, np.dtype[Any]]


class PictureSteps(PilBackend):  # type: ignore[misc]  # transformers types it as Any
    """Steps of :class:`PilBackend` on pictures of three colours, bit for bit as there.

    All arrays are [3, height, width].
    """

    def resize(self, image: Array, size: Any, resample: Any = None, **options: Any) -> Array:
        """Scale a picture; one that has the size already is returned as it is, which Pillow would copy."""
        height, width = image.shape[-2:]
        if (size.height, size.width) == (height, width) or _is_shorter_side(size, min(height, width)):
            return image
        resized: Array = super().resize(image, size, resample, **options)
        return resized

    def rescale(self, image: Array, scale: float, **options: Any) -> Array:
        """Multiply by ``scale``: float32. Of a byte the result is looked up among all 256."""
        if image.dtype != np.uint8:
            rescaled: Array = super().rescale(image, scale, **options)
            return rescaled
        return np.take(_scaled_bytes(scale), image)

    def normalize(
        self, image: Array, mean: float | Iterable[float], std: float | Iterable[float], **options: Any
    ) -> Array:
        """Subtract the mean of each colour and divide by its standard deviation."""
        if image.dtype != np.float32 or len(image) != 3:
            normalized: Array = super().normalize(image, mean, std, **options)
            return normalized
        shift, divisor = (np.array(values, dtype=np.float32).reshape(-1, 1, 1) for values in (mean, std))
        centred = np.subtract(image, shift, order="C")
        return np.divide(centred, divisor, out=centred)


def _is_shorter_side(size: Any, side: int) -> bool:
    """Return whether ``size`` asks for this shorter side and sets no other limit."""
    return bool(size.shortest_edge == side and not size.longest_edge)


@functools.cache
def _scaled_bytes(scale: float) -> Array:
    """Return each byte times ``scale``, rounded as transformers rounds it: float32 [256]."""
    return (np.arange(256, dtype=np.float64) * scale).astype(np.float32)


def with_picture_steps(image_processor: Any) -> Any:
    """Return an image processor with the steps of :class:`PictureSteps` in place of those of :class:`PilBackend`.

    Steps that the processor's class defines itself stay. A processor of another backend is returned as it is.
    """
    own = type(image_processor)
    if not issubclass(own, PilBackend):
        return image_processor
    faster: Any = object.__new__(type(own.__name__, (own, PictureSteps), {"__module__": own.__module__}))
    faster.__dict__.update(image_processor.__dict__)
    return faster
