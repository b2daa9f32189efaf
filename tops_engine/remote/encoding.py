"""Pictures that are encoded before a server gets them: what an encoder gives, and what a server takes.

vLLM takes a picture's visual tokens in place of the picture (``image_embeds``, with ``--enable-mm-embeds``). An encoder
runs the vision tower and the pruning, on this machine (:class:`tops_engine.encoding.PictureEncoder`) or on another one
(:class:`tops_engine.remote.encoder_client.EncoderClient`).
"""

import re
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from tops_engine.errors import InvalidInput, quote
from tops_engine.media.images import ImageSource
from tops_engine.settings import Pruning

#: A checkpoint on the hub: owner/name.
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class EncodedPicture:
    """The kept visual tokens of a picture, in the form that vLLM takes.

    Attributes
    ----------
    image_embeds : base64 of what ``torch.save`` writes for a tensor [kept, hidden size]. Only vLLM reads it, by
        ``torch.load(weights_only=True)``; this package never does.
    kept : the number of tokens in it.
    unpruned : the number of visual tokens of the picture before pruning.
    """

    image_embeds: str
    kept: int
    unpruned: int


class Served(NamedTuple):
    """A model of a server.

    Attributes
    ----------
    name : what requests call it.
    checkpoint : the hub id or folder that the server loaded; None if it does not state it.
    """

    name: str
    checkpoint: str | None


class Encoder(Protocol):
    """Encodes pictures for a server. Safe to use from several threads; its methods block."""

    def connect(self, served: Served) -> None:
        """Get ready to encode pictures for a model of a server; call this before the other methods.

        Raises
        ------
        InvalidInput
            If the encoder has another model.
        ServerError
            If the encoder runs on another machine that cannot be reached.
        """

    def runs(self, pruning: Pruning | None) -> Pruning:
        """Return the pruning that runs when this one is asked for; None is the encoder's own.

        Raises
        ------
        InvalidInput
            If the encoder cannot prune so.
        """

    def encode(self, picture: ImageSource, pruning: Pruning | None) -> EncodedPicture:
        """Encode and prune a picture.

        Raises
        ------
        TopsError
            If the picture or the pruning cannot be used, or the encoder fails.
        """


def check_checkpoint(encoder: str, server: str | None) -> None:
    """Refuse a server whose model is not that of the encoder.

    Only names on the hub are compared: folders of one checkpoint have other names on other machines.

    Raises
    ------
    InvalidInput
        If both are names on the hub, and they differ.
    """
    if server is None or not (HUB_ID.fullmatch(encoder) and HUB_ID.fullmatch(server)):
        return
    if encoder.lower() != server.lower():
        raise InvalidInput(
            f"The encoder has the model {quote(encoder)} and the server {quote(server)}; both need the same checkpoint."
        )
