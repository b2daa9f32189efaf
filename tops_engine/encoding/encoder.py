"""Encode pictures on this machine for servers that run only the language model."""

import base64
import functools
import hashlib
import io
import threading
from collections import OrderedDict
from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from tops_engine.encoding.kept_tokens import for_encoder, kept_tokens
from tops_engine.encoding.served_models import check_served
from tops_engine.engine import Engine
from tops_engine.families import Family
from tops_engine.loading import load_family
from tops_engine.media.images import ImageSource, open_image
from tops_engine.remote.encoding import EncodedPicture, Served, check_checkpoint
from tops_engine.settings import ModelSpec, Pruning

#: Bytes of encoded pictures that an encoder remembers, so that the next turn of a conversation encodes none again.
REMEMBERED_BYTES = 256 * 2**20


class PictureEncoder:
    """The vision tower and the pruning of a model, on this machine. Safe to use from several threads.

    The weights of the tower load at the first picture; of the language model, only the token table, the output layer
    and one decoder layer are read.

    Parameters
    ----------
    spec : which checkpoint, where and how.
    pruning : what runs if a picture is encoded without a pruning of its own.
    """

    def __init__(self, spec: ModelSpec, pruning: Pruning | None = None) -> None:
        self.spec = spec
        self.pruning = pruning or Pruning()
        self._loaded: Engine | None = None
        self._loading = threading.Lock()
        self._known: OrderedDict[bytes, EncodedPicture] = OrderedDict()
        self._lock = threading.Lock()

    def connect(self, served: Served) -> None:
        """Load the tower, and check that a server has the same checkpoint; see :class:`Encoder`."""
        check_checkpoint(self.spec.model, served.checkpoint)
        _ = self._engine

    def runs(self, pruning: Pruning | None) -> Pruning:
        """Return the pruning that runs; see :class:`Encoder`."""
        return for_encoder(pruning or self.pruning, self.family.one_size)

    def encode(self, picture: ImageSource, pruning: Pruning | None = None) -> EncodedPicture:
        """Encode and prune a picture; see :meth:`encode_batch`."""
        return self.encode_batch([picture], pruning)[0]

    def encode_batch(self, pictures: Sequence[ImageSource], pruning: Pruning | None = None) -> list[EncodedPicture]:
        """Encode and prune pictures together.

        Raises
        ------
        InvalidImage
            If a picture cannot be read.
        InvalidInput
            If the pruning cannot run before the language model, or a picture has fewer tokens than it keeps.
        UnsupportedModel
            If vLLM does not serve the model from embedded pictures.
        ModelNotFound, MissingDependency, OutOfMemory
            As :class:`tops_engine.engine.Engine`.
        """
        runs = self.runs(pruning)
        opened = [open_image(picture) for picture in pictures]
        keys = [_key(image, runs) for image in opened]
        known = {key: picture for key in keys if (picture := self._remembered(key)) is not None}
        new = {key: image for key, image in zip(keys, opened, strict=True) if key not in known}
        for key, encoded in zip(new, self._encode(list(new.values()), runs), strict=True):
            self._remember(key, encoded)
            known[key] = encoded
        return [known[key] for key in keys]

    @property
    def family(self) -> Family:
        """The loaded tower."""
        return self._engine.family

    @property
    def hidden_size(self) -> int:
        """The width of a token."""
        return int(self.family.model.config.get_text_config().hidden_size)

    @property
    def dtype(self) -> str:
        """The precision of the tokens, such as ``bfloat16``."""
        return str(self.family.decoder.dtype).removeprefix("torch.")

    @property
    def _engine(self) -> Engine:
        with self._loading:
            if self._loaded is None:
                engine = Engine(self.spec)
                family = load_family(self.spec, tower_only=True)
                check_served(self.spec.model, family)
                engine.use(family)
                self._loaded = engine
            return self._loaded

    def _encode(self, pictures: Sequence[Image.Image], pruning: Pruning) -> list[EncodedPicture]:
        if not pictures:
            return []
        with self._engine.working_family() as family:
            kept = kept_tokens(family, pictures, pruning)
            features = [one.features.cpu() for one in kept]
        return [
            EncodedPicture(_written(tokens), len(tokens), one.unpruned)
            for tokens, one in zip(features, kept, strict=True)
        ]

    def _remembered(self, key: bytes) -> EncodedPicture | None:
        with self._lock:
            if key in self._known:
                self._known.move_to_end(key)
            return self._known.get(key)

    def _remember(self, key: bytes, picture: EncodedPicture) -> None:
        with self._lock:
            self._known[key] = picture
            while sum(len(one.image_embeds) for one in self._known.values()) > REMEMBERED_BYTES:
                self._known.popitem(last=False)


@functools.lru_cache(maxsize=8)
def shared_encoder(spec: ModelSpec) -> PictureEncoder:
    """Return one encoder of the process for equal specs, so that its weights are in memory once."""
    return PictureEncoder(spec)


def _key(image: Image.Image, pruning: Pruning) -> bytes:
    digest = hashlib.sha256(f"{image.size} {pruning.label} {pruning.budget!r}".encode())
    digest.update(image.tobytes())
    return digest.digest()


def _written(tokens: Tensor) -> str:
    """Return the base64 of the file that vLLM reads."""
    # A copy: torch.save writes the whole storage of a view.
    stream = io.BytesIO()
    torch.save(tokens.clone(), stream)
    return base64.b64encode(stream.getvalue()).decode()
