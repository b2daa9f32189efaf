"""Models behind servers, and which servers a workflow may name.

Workflows are shared, and whoever runs one sends pictures to the server it names. So without a word from the owner of
this machine that is only ever a server on the machine itself, and the key to it never is part of a workflow.
"""

import ipaddress
import os
from contextlib import suppress
from urllib.parse import urlsplit

from tops_engine.errors import InvalidInput, MissingDependency
from tops_engine.remote import RemoteEngine
from tops_engine.remote.server import checked_address

#: Environment variables: servers that workflows may name, separated by commas, and the key that is sent to them.
SERVERS, API_KEY = "TOPS_SERVERS", "TOPS_API_KEY"

PORTS = {"http": 80, "https": 443}


class ServedModel:
    """Socket TOPS_MODEL, as :class:`nodes.sockets.TopsModel` is: a model that a server runs.

    Attributes
    ----------
    engine : asks the server.
    """

    def __init__(self, server: str, name: str | None) -> None:
        address = allowed_server(server)
        # Anybody may listen at a port of this machine; the key goes to those whom its owner has named.
        key = os.environ.get(API_KEY) if _origin(address) in _known() else None
        try:
            self.engine = RemoteEngine(address, name, key or None)
        except MissingDependency as error:
            raise MissingDependency(
                "Asking a server needs the openai library; pip install openai, with ComfyUI's own Python."
            ) from error

    def __repr__(self) -> str:
        return f"TOPS model of {self.engine.base_url}"


def allowed_server(url: str) -> str:
    """The address of the API, if workflows may name the server.

    Raises
    ------
    InvalidInput
        If it is none, holds a password, or is neither on this machine nor in ``TOPS_SERVERS``.
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
