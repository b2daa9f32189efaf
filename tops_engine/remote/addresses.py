"""Addresses that only this machine can reach, for servers that listen on it alone unless asked."""

from ipaddress import ip_address

#: Names in a Host header that mean this machine.
LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach an address."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
