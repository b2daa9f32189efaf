"""Where pictures for a server are encoded: on this machine, or by encoders on others."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tops_engine.errors import InvalidInput, quote
from tops_engine.media.images import ImageSource
from tops_engine.remote.encoder_client import EncoderClient
from tops_engine.remote.encoding import HUB_ID, EncodedPicture, Encoder, Served
from tops_engine.settings import ModelSpec, Pruning

if TYPE_CHECKING:
    from tops_engine.encoding.encoder import PictureEncoder

HERE = "here"


def encoder_at(encode: str, api_key: str | None = None, **options: Any) -> Encoder:
    """Return the encoder that an option ``encode`` names.

    Parameters
    ----------
    encode : ``here``, or the addresses of encoders, separated by commas.
    api_key : the key of the encoders.
    options : of :class:`ModelSpec`, where and how the tower runs ``here``; the checkpoint is that of the server.

    Raises
    ------
    InvalidInput
        If it is neither, or options are given for encoders on other machines.
    """
    if encode.strip() == HERE:
        return EncoderHere(options)
    if "//" not in encode:
        raise InvalidInput(
            f"encode={quote(encode)} is not allowed: give `here`, or the address of an encoder such as "
            "http://host:8100; several are separated by commas."
        )
    if options:
        raise InvalidInput(f"{min(options)} is decided where the encoder runs; leave it out, or set encode=here.")
    return EncoderClient([url for url in map(str.strip, encode.split(",")) if url], api_key)


class EncoderHere:
    """An encoder on this machine, with the checkpoint of the server that gets the pictures.

    Parameters
    ----------
    options : of :class:`ModelSpec`, without the model.
    """

    def __init__(self, options: dict[str, Any]) -> None:
        self._options = options
        self._encoder: PictureEncoder | None = None

    def connect(self, served: Served) -> None:
        """Load the tower of the server's checkpoint; see :class:`Encoder`."""
        # Imported late: encoders on other machines need no torch here.
        from tops_engine.encoding.encoder import shared_encoder

        self._encoder = shared_encoder(ModelSpec(model=_source(served), **self._options))
        self._encoder.connect(served)

    def runs(self, pruning: Pruning | None) -> Pruning:
        """Return the pruning that runs; see :class:`Encoder`."""
        return self._connected.runs(pruning)

    def encode(self, picture: ImageSource, pruning: Pruning | None) -> EncodedPicture:
        """Encode and prune a picture; see :class:`Encoder`."""
        return self._connected.encode(picture, pruning)

    @property
    def _connected(self) -> "PictureEncoder":
        if self._encoder is None:
            raise InvalidInput("The encoder does not know the checkpoint yet; connect it to the server first.")
        return self._encoder


def _source(served: Served) -> str:
    """Return what this machine loads: the server's checkpoint, or by its name where its folder is not here."""
    checkpoint = served.checkpoint
    if checkpoint is not None and (HUB_ID.fullmatch(checkpoint) or Path(checkpoint).is_dir()):
        return checkpoint
    return served.name
