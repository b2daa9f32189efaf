"""Models behind servers, and which servers a workflow may name.

Workflows are shared, and running one sends pictures to the server that it names. Therefore a workflow may name only
servers on this machine, unless the owner of the machine allows others, and the key of a server is never part of a
workflow.
"""

import ipaddress
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import NoReturn
from urllib.parse import urlsplit

from tops_workflow.host import Host

from tops_engine.answers.base import BaseAnswer, Piece
from tops_engine.captioning.asking import Captioned, Picture, Question
from tops_engine.captioning.in_flight import caption_in_flight
from tops_engine.contract import Request
from tops_engine.encoding.places import HERE, encoder_at
from tops_engine.errors import InvalidInput, MissingDependency
from tops_engine.remote import RemoteEngine
from tops_engine.remote.encoding import Encoder
from tops_engine.remote.server import checked_address

from .comfyui_host import StopWatch, stop_if_interrupted
from .models import NodeModel

#: Environment variables: the servers that workflows may name, separated by commas, and the key that is sent to them.
SERVERS, API_KEY = "TOPS_SERVERS", "TOPS_API_KEY"

PORTS = {"http": 80, "https": 443}

#: Seconds that a server which does not answer has to come back while pictures are captioned.
PATIENCE = 30.0


class ServedModel(NodeModel):
    """A model behind a server.

    Raises
    ------
    InvalidInput
        If workflows may not name the server.
    MissingDependency
        If the openai library is not installed.
    """

    engine: RemoteEngine
    default_pruning = None

    def __init__(self, server: str, name: str | None, encode: str = "", device: str = "auto") -> None:
        address = allowed_server(server)
        try:
            encoder = _encoder(encode, device) if encode.strip() else None
            self.engine = RemoteEngine(address, name, _key([address]), encoder=encoder)
        except MissingDependency as error:
            raise MissingDependency(
                "Asking a server needs the openai library; pip install openai, with ComfyUI's own Python."
            ) from error

    def __repr__(self) -> str:
        return f"TOPS model of {self.engine.base_url}"

    def stream(self, request: Request, host: Host) -> Iterator[Piece | BaseAnswer]:
        total = request.generation.max_tokens
        for number, piece in enumerate(self.engine.run_stream(request, StopWatch(host)), start=1):
            if not isinstance(piece, BaseAnswer):
                host.progress(min(number, total), total)
            yield piece

    def caption(self, pictures: Sequence[Picture], question: Question, at_once: int, host: Host) -> Iterator[Captioned]:
        return caption_in_flight(
            self.engine,
            pictures,
            question,
            at_once,
            PATIENCE,
            on_wait=lambda: stop_if_interrupted(host),
            say=host.show_text,
        )

    def takes_videos(self, max_tokens: int) -> bool:
        # A server would choose other frames than the node.
        return False

    def local(self, node: str) -> NoReturn:
        raise InvalidInput(
            f"{node} looks into the model, and a server does not let it; connect a TOPS Load Model without a server."
        )

    def free(self) -> list[str]:
        return []


def check_encode(encode: str) -> None:
    """Check what a workflow says about where pictures are encoded.

    Raises
    ------
    InvalidInput
        If it is neither ``here`` nor addresses that workflows may name.
    """
    encoder_at(encode)
    if encode.strip() != HERE:
        for url in encode.split(","):
            allowed_server(url)


def _encoder(encode: str, device: str) -> Encoder:
    check_encode(encode)
    if encode.strip() == HERE:
        return encoder_at(encode, device=device)
    return encoder_at(encode, _key([allowed_server(url) for url in encode.split(",")]))


def _key(addresses: Sequence[str]) -> str | None:
    """Return the key for servers.

    Any program may listen at a port of this machine; the key goes only to servers that the owner has named.
    """
    return os.environ.get(API_KEY) or None if all(_origin(address) in _known() for address in addresses) else None


def allowed_server(url: str) -> str:
    """Return the address of the API of a server that workflows may name.

    Raises
    ------
    InvalidInput
        If the address is not valid, holds a password, or is neither on this machine nor in ``TOPS_SERVERS``.
    """
    address = checked_address(url)
    host, origin = str(urlsplit(address).hostname), _origin(address)
    if not _is_here(host) and origin not in _known():
        scheme, host, port = origin
        raise InvalidInput(
            f"The server {host} is not on this machine, and a workflow sends pictures only to servers that the owner "
            f"of this machine allows: start ComfyUI with {SERVERS}={scheme}://{host}:{port} in the environment."
        )
    return address


def _known() -> list[tuple[str, str, int]]:
    known = []
    for entry in os.environ.get(SERVERS, "").split(","):
        with suppress(InvalidInput):
            known.append(_origin(checked_address(entry)))
    return known


def _origin(address: str) -> tuple[str, str, int]:
    parts = urlsplit(address)
    return parts.scheme, str(parts.hostname), parts.port or PORTS[parts.scheme]


def _is_here(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
