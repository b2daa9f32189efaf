"""The pictures that an engine sends to its server as visual tokens."""

import asyncio
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from tops_engine.errors import InvalidInput, shorten
from tops_engine.media.images import ImageSource
from tops_engine.remote.encoding import EncodedPicture, Encoder
from tops_engine.remote.server import Server
from tops_engine.settings import Pruning


class SentPictures:
    """Encodes pictures for a server, all with one number of tokens.

    vLLM 0.32 joins the encoded pictures of all requests of a step to one tensor. Where they differ in their number of
    tokens, its engine process ends with "contains inconsistent shapes", and every request with it.

    Parameters
    ----------
    encoder : encodes the pictures; it is connected before the first one.
    server : gets the pictures.
    """

    def __init__(self, encoder: Encoder, server: Server) -> None:
        self._encoder = encoder
        self._server = server
        self._is_connected = False
        self._asked: Pruning | None = None
        self._kept: int | None = None
        self._lock = threading.Lock()

    async def connect(self) -> None:
        """Check that the encoder is ready, and has the model of the server.

        Raises
        ------
        InvalidInput
            If it has another model.
        ServerError
            If the server or an encoder on another machine cannot be reached.
        """
        # Loading the tower takes time that the other requests of this loop need.
        await asyncio.to_thread(self._encoder.connect, await self._server.served())
        self._is_connected = True

    async def pruning(self, asked: Pruning | None) -> Pruning:
        """Return the pruning that runs when this one is asked for; None is the encoder's own.

        Raises
        ------
        InvalidInput
            If the encoder cannot prune so.
        ServerError
            As :meth:`connect`.
        """
        if not self._is_connected:
            await self.connect()
        runs = await asyncio.to_thread(self._encoder.runs, asked)
        self._asked = asked
        return runs

    async def last_pruning(self) -> Pruning:
        """Return the pruning that was asked for last, or the encoder's own."""
        return await self.pruning(self._asked)

    def write_to_count(self, source: ImageSource, pruning: Pruning) -> dict[str, Any]:
        """Return what :meth:`write` does, for a prompt that the model does not read."""
        return {"type": "image_embeds", "image_embeds": self._encoder.encode(source, pruning).image_embeds}

    def write(self, source: ImageSource, pruning: Pruning) -> dict[str, Any]:
        """Return the part of a message that holds the kept tokens of a picture.

        Raises
        ------
        InvalidInput
            If the picture keeps another number of tokens than those before it.
        """
        picture = self._encoder.encode(source, pruning)
        self._check_number(picture)
        return {"type": "image_embeds", "image_embeds": picture.image_embeds}

    def num_tokens(self, messages: Sequence[Mapping[str, Any]]) -> int:
        """Return how many visual tokens messages hold that :meth:`write` wrote the pictures of."""
        parts = [part for message in messages if isinstance(message["content"], list) for part in message["content"]]
        return (self._kept or 0) * sum(part["type"] == "image_embeds" for part in parts)

    def _check_number(self, picture: EncodedPicture) -> None:
        with self._lock:
            self._kept = picture.kept if self._kept is None else self._kept
        if picture.kept != self._kept:
            raise InvalidInput(
                f"Encoded pictures of {self._kept} tokens went to {shorten(self._server.base_url)}, and this one has "
                f"{picture.kept}: vLLM ends when pictures with different numbers of tokens meet. Keep one budget for "
                "all pictures of a server."
            )
