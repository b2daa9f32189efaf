"""Who may talk to Studio: pages it served itself, from this machine, or with the token where it listens to others."""

import hmac
from ipaddress import ip_address
from urllib.parse import urlsplit

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

COOKIE = "tops_studio_token"
LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")


def is_loopback(host: str) -> bool:
    """Whether an address is reached from this machine only."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def guard(token: str | None) -> Middleware:
    """The checks every request passes.

    Args:
        token: What a request has to bring (``?token=`` once, then a cookie), or None on a loopback address: there the
            Host header has to name this machine, so that no web page can reach Studio through a name of its own.
    """

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        host = urlsplit(f"//{request.host}").hostname or ""
        if token is None and host not in LOCAL_NAMES:
            raise web.HTTPForbidden(text="Studio answers to localhost only.")
        origin = request.headers.get("Origin")
        if origin is not None and urlsplit(origin).netloc != request.host:
            raise web.HTTPForbidden(text="Requests from other pages are refused.")
        given = request.query.get("token") or request.cookies.get(COOKIE, "")
        if token is not None and not hmac.compare_digest(given.encode(), token.encode()):
            raise web.HTTPUnauthorized(text="Open the address that Studio printed at its start; it holds the token.")
        response = await handler(request)
        if not response.prepared:
            response.headers.setdefault("X-Content-Type-Options", "nosniff")
            if token is not None and request.query.get("token"):
                response.set_cookie(COOKIE, token, httponly=True, samesite="Strict")
        return response

    return middleware
