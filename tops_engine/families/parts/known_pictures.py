"""An image processor with a cache, so that a picture is scaled and cut once for many questions."""

import copy
import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from PIL import Image
from torch import Tensor

# Bytes of main memory for the cache: a few pictures of the families that cut them into many tiles.
MAX_BYTES = 2**26


class KnownPictures:
    """Wrap an image processor and keep its results for the last pictures. Attributes are those of the processor.

    Setting an attribute empties the cache.

    Parameters
    ----------
    processor : the checkpoint's image processor.
    """

    _processor: Any
    _made: OrderedDict[tuple[object, ...], Any]
    #: Fingerprints of the pictures of the last call.
    _latest: list[tuple[Image.Image, bytes]]

    def __init__(self, processor: Any) -> None:
        self.__dict__.update(_processor=processor, _made=OrderedDict(), _latest=[])

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)  # copy.copy looks for these before there is a processor
        return getattr(self._processor, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self.forget()
        setattr(self._processor, name, value)

    def __call__(self, images: Any, **options: Any) -> Any:
        """Return the processor's result for ``images``. Its tensors are shared and must not be changed in place."""
        pictures = _flat(images)
        if not all(isinstance(picture, Image.Image) for picture in pictures):
            return self._processor(images, **options)
        self._latest[:] = [(picture, picture_digest(picture)) for picture in pictures]
        key = (*(digest for _, digest in self._latest), repr(sorted(options.items())))
        if key not in self._made:
            made = self._processor(images, **options)
            if _num_bytes(made) > MAX_BYTES:
                return made
            self._made[key] = made
            while sum(map(_num_bytes, self._made.values())) > MAX_BYTES:
                self._made.popitem(last=False)
        self._made.move_to_end(key)
        return copy.copy(self._made[key])

    def digests(self, pictures: Sequence[Image.Image]) -> list[bytes]:
        """Return the fingerprints of pictures right after the call that processed them, most of which it has taken."""
        taken = {id(picture): digest for picture, digest in self._latest}
        self._latest.clear()  # the caller may change the pictures before the next call
        return [taken.get(id(picture)) or picture_digest(picture) for picture in pictures]

    def forget(self) -> None:
        """Empty the cache."""
        self._made.clear()
        self._latest.clear()


def picture_digest(picture: Image.Image) -> bytes:
    """Return a fingerprint of a picture's content: 32 bytes."""
    # Processors have instructions for SHA-256.
    digest = hashlib.sha256(f"{picture.size} {picture.mode}".encode())
    digest.update(picture.tobytes())
    return digest.digest()


def _flat(images: Any) -> list[Any]:
    if isinstance(images, Sequence) and not isinstance(images, str):
        return [picture for entry in images for picture in _flat(entry)]
    return [images]


def _num_bytes(made: Any) -> int:
    return sum(value.nbytes for value in made.values() if isinstance(value, Tensor))
