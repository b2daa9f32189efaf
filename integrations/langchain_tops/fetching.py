"""Pictures and videos from the web: only from hosts that the caller allows, with limits on size, time and redirects.

A host name is resolved once, all its addresses are checked, and the connection goes to a checked address, so that
nothing can change between the check and the connection. Each redirect is checked in the same way.
"""

import contextlib
import http.client
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Sequence
from urllib.parse import SplitResult, urljoin, urlsplit

from tops_engine.errors import InvalidImage, quote, reason_of, shorten

MAX_BYTES = 32 * 2**20
MAX_SECONDS = 20.0
MAX_REDIRECTS = 3
REDIRECTS = (301, 302, 303, 307, 308)
PORTS = {"http": 80, "https": 443}


def fetch(url: str, allowed_hosts: Sequence[str]) -> bytes:
    """Return the content of a web address.

    Args:
        url: An http or https address.
        allowed_hosts: Host names, ``*.example.org`` for all names below a domain, or ``*`` for all public hosts.

    Raises:
        InvalidImage: If the host is not allowed, its address is not public, or the answer exceeds the limits.
    """
    deadline = time.monotonic() + MAX_SECONDS
    first = url
    try:
        for _ in range(MAX_REDIRECTS + 1):
            parts = _checked(url, allowed_hosts)
            status, location, body = _request(parts, deadline)
            if status not in REDIRECTS:
                break
            url = urljoin(url, location)
        else:
            raise InvalidImage(f"{shorten(first)} redirects more than {MAX_REDIRECTS} times.")
    except (OSError, http.client.HTTPException, UnicodeError) as error:
        raise InvalidImage(f"{shorten(url)} cannot be fetched: {reason_of(error)}.") from error
    if status != 200:
        raise InvalidImage(f"{shorten(url)} cannot be fetched: the server answers {status}.")
    return body


def _checked(url: str, allowed_hosts: Sequence[str]) -> SplitResult:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise InvalidImage(f"{shorten(url)} is not a web address: {reason_of(error)}.") from None
    if parts.scheme not in PORTS or not host:
        raise InvalidImage(f"{shorten(url)} is not an http or https address.")
    if not any(_matches(host.lower(), pattern.lower()) for pattern in allowed_hosts):
        allowed = ", ".join(allowed_hosts) or "none"
        raise InvalidImage(
            f"Pictures and videos from the host {quote(host)} are not fetched; allowed hosts are: {shorten(allowed)}. "
            "Set allowed_image_hosts, or send the file itself."
        )
    if port not in (None, PORTS[parts.scheme]):
        raise InvalidImage(f"{shorten(url)} names the port {port}; only the standard ports are used.")
    return parts


def _matches(host: str, pattern: str) -> bool:
    return pattern in ("*", host) or (pattern.startswith("*.") and host.endswith(pattern[1:]))


def _request(parts: SplitResult, deadline: float) -> tuple[int, str, bytes]:
    """Return the status, the target of a redirect, and the body."""
    host = parts.hostname or ""
    seconds = max(0.1, deadline - time.monotonic())
    connection = _Connection(host, public_address(host, PORTS[parts.scheme]), parts.scheme == "https", seconds)
    # The time limit of the socket restarts with every byte received.
    timer = threading.Timer(seconds, connection.hang_up)
    timer.daemon = True
    timer.start()
    try:
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        connection.request("GET", path, headers={"Accept": "image/*, video/*", "User-Agent": "tops-engine"})
        response = connection.getresponse()
        body = b"" if response.status in REDIRECTS else response.read(MAX_BYTES + 1)
        if time.monotonic() >= deadline:
            raise TimeoutError(f"it takes longer than {MAX_SECONDS:.0f} seconds")
    finally:
        timer.cancel()
        connection.close()
    if len(body) > MAX_BYTES:
        raise InvalidImage(f"{shorten(parts.geturl())} is larger than {MAX_BYTES // 2**20} MiB.")
    return response.status, response.getheader("Location") or "", body


def public_address(host: str, port: int) -> tuple[str, int]:
    """Return the first address of a host, if all of its addresses are public.

    Raises:
        InvalidImage: If an address is private, loopback, link-local, or otherwise not on the internet.
    """
    found = [info[4] for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    for name, *_ in found:
        if not _is_public(ipaddress.ip_address(str(name).partition("%")[0])):
            raise InvalidImage(f"The host {quote(host)} has the address {name}, which is not a public one.")
    return str(found[0][0]), port


def _is_public(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour or (address.teredo or (None, None))[1]
        if inner is None and address in ipaddress.ip_network("64:ff9b::/96"):
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            return _is_public(inner)
    return address.is_global and not address.is_multicast


class _Connection(http.client.HTTPConnection):
    """A connection to a checked address, under the name of the host."""

    def __init__(self, host: str, address: tuple[str, int], encrypted: bool, seconds: float) -> None:
        super().__init__(host, address[1], timeout=seconds)
        self._address = address
        self._encrypted = encrypted
        # The base class drops its socket once the response reads from it.
        self._open: socket.socket | None = None

    def connect(self) -> None:
        self.sock = socket.create_connection(self._address, self.timeout)
        if self._encrypted:
            self.sock = ssl.create_default_context().wrap_socket(self.sock, server_hostname=self.host)
        self._open = self.sock

    def hang_up(self) -> None:
        """End all waiting for the other side."""
        if self._open is not None:
            with contextlib.suppress(OSError):
                self._open.shutdown(socket.SHUT_RDWR)
