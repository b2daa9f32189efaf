"""An image processor with a cache, so that a picture is scaled and cut once for many questions."""

import copy
import hashlib
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from tops_engine.device.memory import MAX_PICTURE_BYTES
from tops_engine.families.parts.picture_steps import PictureSteps


class Seen(NamedTuple):
    """A picture's size and mode, its pixels and its fingerprint."""

    about: str
    pixels: bytes
    digest: bytes


class KnownPictures:
    """Wrap an image processor and keep its results for the last pictures. Attributes are those of the processor.

    Setting an attribute of the processor empties the cache.

    Parameters
    ----------
    processor : the checkpoint's image processor.
    max_bytes : how much main memory the results may take.
    """

    _processor: Any
    _max_bytes: int
    _made: OrderedDict[tuple[object, ...], Any]
    #: Fingerprints of the pictures of the last call.
    _latest: list[tuple[Image.Image, bytes]]
    #: The pictures of the last call. Comparing pixels takes a fraction of the time of a fingerprint.
    _seen: list[Seen]
    #: The settings of :meth:`other_settings`.
    _others: dict[str, Any]
    #: Bytes of the kept results. Adding them up for each new picture takes longer the more are kept.
    _made_bytes: int

    def __init__(self, processor: Any, max_bytes: int = MAX_PICTURE_BYTES) -> None:
        caches: dict[str, Any] = {"_made": OrderedDict(), "_latest": [], "_seen": [], "_others": {}}
        self.__dict__.update(caches, _processor=processor, _max_bytes=max_bytes, _made_bytes=0)

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
        seen = [self._look_at(picture) for picture in pictures]
        self._seen[:] = seen
        self._latest[:] = [(picture, one.digest) for picture, one in zip(pictures, seen, strict=True)]
        key = (*(digest for _, digest in self._latest), repr(sorted((options | self._others).items())))
        if key not in self._made:
            made = self._processor(images, **options)
            if _num_bytes(made) > self._max_bytes:
                self._evict()
                return made
            self._made[key] = made
            self.__dict__["_made_bytes"] += _num_bytes(made)
        self._evict()
        self._made.move_to_end(key)
        return copy.copy(self._made[key])

    def scale_on(self, device: torch.device) -> None:
        """Scale pictures on a GPU, or else with Pillow; the bytes are the same."""
        if isinstance(self._processor, PictureSteps):
            self._processor.scaling_device = device if device.type == "cuda" else None

    @contextmanager
    def other_settings(self, settings: Mapping[str, Any]) -> Iterator[None]:
        """Set attributes of the processor in a block; what was made with others stays in the cache."""
        before = {name: getattr(self._processor, name) for name in settings}
        self._set(settings)
        self.__dict__["_others"] = dict(settings)
        try:
            yield
        finally:
            self._set(before)
            self.__dict__["_others"] = {}

    def _set(self, settings: Mapping[str, Any]) -> None:
        for name, value in settings.items():
            setattr(self._processor, name, value)

    def _look_at(self, picture: Image.Image) -> Seen:
        """Return a picture with its fingerprint, which is known if the last call was about the same pixels."""
        about, pixels = _about(picture), picture.tobytes()
        same = (seen for seen in self._seen if seen.about == about and seen.pixels == pixels)
        return next(same, None) or Seen(about, pixels, digest_of(about, pixels))

    @property
    def num_bytes(self) -> int:
        """Bytes that the kept results and pixels take."""
        return self._made_bytes + sum(len(seen.pixels) for seen in self._seen)

    def limit(self, max_bytes: int) -> None:
        """Set how much main memory the results may take, and drop the oldest ones beyond that."""
        self.__dict__["_max_bytes"] = max_bytes
        self._evict()

    def _evict(self) -> None:
        if self.num_bytes > self._max_bytes:
            self._seen.clear()
        while self.num_bytes > self._max_bytes:
            _, made = self._made.popitem(last=False)
            self.__dict__["_made_bytes"] -= _num_bytes(made)

    def digests(self, pictures: Sequence[Image.Image]) -> list[bytes]:
        """Return the fingerprints of pictures right after the call that processed them, most of which it has taken."""
        taken = {id(picture): digest for picture, digest in self._latest}
        self._latest.clear()  # the caller may change the pictures before the next call
        return [taken.get(id(picture)) or picture_digest(picture) for picture in pictures]

    def forget(self) -> None:
        """Empty the cache."""
        for cache in (self._made, self._latest, self._seen):
            cache.clear()
        self.__dict__["_made_bytes"] = 0


def picture_digest(picture: Image.Image) -> bytes:
    """Return a fingerprint of a picture's content: 32 bytes."""
    return digest_of(_about(picture), picture.tobytes())


def _about(picture: Image.Image) -> str:
    return f"{picture.size} {picture.mode}"


def digest_of(about: str, pixels: bytes) -> bytes:
    """Return the fingerprint of these pixels: 32 bytes."""
    # Processors have instructions for SHA-256.
    digest = hashlib.sha256(about.encode())
    digest.update(pixels)
    return digest.digest()


def _flat(images: Any) -> list[Any]:
    if isinstance(images, Sequence) and not isinstance(images, str):
        return [picture for entry in images for picture in _flat(entry)]
    return [images]


def _num_bytes(made: Any) -> int:
    return sum(value.nbytes for value in made.values() if isinstance(value, Tensor))
