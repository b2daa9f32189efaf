"""Access to Studio: its own pages, on this machine, or with the token if other machines can reach it."""

import hmac
from urllib.parse import urlsplit

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from tops_engine.remote.addresses import LOCAL_NAMES

COOKIE = "tops_studio_token"


def guard(token: str | None) -> Middleware:
    """Return the middleware that checks every request.

    Args:
        token: The secret that a request must send (``?token=`` once, then a cookie), or None on a loopback address:
            there the Host header must name this machine, so that no web page can reach Studio through a host name of
            its own.
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
