"""The steps of transformers' image processors, with equal results in less time.

On the CPU Pillow scales the pictures: its results are the published ones. PyTorch's own scaling of bytes takes a fifth
of the time, but differs by a grey level or more in some pixels. A GPU computes Pillow's sums itself.
"""

import functools
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from transformers.image_processing_backends import PilBackend
from transformers.image_transforms import get_resize_output_image_size, get_size_with_aspect_ratio
from transformers.image_utils import ChannelDimension, get_image_size_for_max_height_width

from tops_engine.families.parts.pillow_resize import FILTERS, equals_pillow, pillow_resize

Array = np.ndarray[Any, np.dtype[Any]]


class PictureSteps(PilBackend):  # type: ignore[misc]  # transformers types it as Any
    """Steps of :class:`PilBackend` on pictures of three colours, bit for bit as there.

    All arrays are [3, height, width].

    Attributes
    ----------
    scaling_device : where pictures are scaled by :func:`pillow_resize`; None leaves it to Pillow.
    """

    scaling_device: torch.device | None = None

    def resize(self, image: Array, size: Any, resample: Any = None, **options: Any) -> Array:
        """Scale a picture; one that has the size already is returned as it is, which Pillow would copy."""
        height, width = image.shape[-2:]
        if (size.height, size.width) == (height, width) or _is_shorter_side(size, min(height, width)):
            return image
        if self._scales_on_device(image, resample, options):
            pixels = torch.from_numpy(np.require(image, requirements="W")).to(self.scaling_device)
            return pillow_resize(pixels, _new_size(image, size), int(resample)).cpu().numpy()
        resized: Array = super().resize(image, size, resample, **options)
        return resized

    def _scales_on_device(self, image: Array, resample: Any, options: dict[str, Any]) -> bool:
        if self.scaling_device is None or image.dtype != np.uint8 or len(image) != 3 or options.get("reducing_gap"):
            return False
        return isinstance(resample, int) and resample in FILTERS and equals_pillow()

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


def _new_size(image: Array, size: Any) -> tuple[int, int]:
    """Return the height and width that transformers scales a picture to."""
    height_and_width = image.shape[-2:]
    new: tuple[int, int]
    if size.shortest_edge and size.longest_edge:
        new = get_size_with_aspect_ratio(height_and_width, size.shortest_edge, size.longest_edge)
    elif size.shortest_edge:
        channels = ChannelDimension.FIRST
        new = get_resize_output_image_size(image, size.shortest_edge, False, input_data_format=channels)
    elif size.max_height and size.max_width:
        new = get_image_size_for_max_height_width(height_and_width, size.max_height, size.max_width)
    else:
        new = size.height, size.width
    return new


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
