"""The HTTP service: what it answers, and to whom."""

import asyncio
import hmac
import signal
from collections.abc import Callable
from urllib.parse import urlsplit

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from tops_engine.encoding.encoder import PictureEncoder
from tops_engine.errors import InvalidInput, OutOfMemory, TopsError
from tops_engine.remote.addresses import LOCAL_NAMES
from tops_engine.remote.encoder_client import FORMAT
from tops_engine.version import __version__

ENCODER = web.AppKey("encoder", PictureEncoder)

#: The most bytes of a picture's file.
MAX_BODY = 64 * 2**20


def create_app(encoder: PictureEncoder, key: str | None = None) -> web.Application:
    """Return the web application.

    Args:
        encoder: What encodes the pictures, with its own pruning.
        key: What requests must send as ``Authorization: Bearer``; None on a loopback address, where the Host header
            must name this machine, so that no web page can reach the service through a host name of its own.
    """
    app = web.Application(middlewares=[_guard(key)], client_max_size=MAX_BODY)
    app[ENCODER] = encoder
    app.router.add_get("/v1/encoder", _stated)
    app.router.add_post("/v1/encode", _encode)
    return app


def serve(encoder: PictureEncoder, host: str, port: int, key: str | None, started: Callable[[str], None]) -> None:
    """Serve until Ctrl-C or SIGTERM.

    Args:
        encoder: What encodes the pictures; its tower is loaded before the service listens.
        host: The address to listen on.
        port: The port; 0 takes a free one.
        key: See :func:`create_app`.
        started: Called with the address of the service.

    Raises:
        InvalidInput: If the address cannot be used.
        TopsError: If the tower cannot be loaded or the pruning cannot run.
    """
    encoder.runs(None)
    asyncio.run(_serve(create_app(encoder, key), host, port, started))


async def _serve(app: web.Application, host: str, port: int, started: Callable[[str], None]) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        try:
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        except NotImplementedError:  # On Windows, Ctrl-C arrives as an exception.
            break
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=3)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
    except OSError as error:
        await runner.cleanup()
        text = f"Port {port} on {host} cannot be used ({error.strerror}); choose another with --port."
        raise InvalidInput(text) from error
    shown = f"[{host}]" if ":" in host else host
    started(f"http://{shown}:{runner.addresses[0][1]}")
    try:
        await stop.wait()
    finally:
        await runner.cleanup()


def _guard(key: str | None) -> Middleware:
    """Return the middleware that checks every request and turns errors into answers."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        if key is None and (urlsplit(f"//{request.host}").hostname or "") not in LOCAL_NAMES:
            return _failure(403, "PermissionError", "The encoder answers to this machine only.")
        if request.headers.get("Origin") is not None:
            return _failure(403, "PermissionError", "The encoder does not answer to web pages.")
        given = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if key is not None and not hmac.compare_digest(given.encode(), key.encode()):
            return _failure(401, "PermissionError", "The key is missing or wrong.")
        try:
            return await handler(request)
        except web.HTTPRequestEntityTooLarge:
            return _failure(400, "InvalidImage", f"The picture is larger than {MAX_BODY >> 20} MiB.")
        except (OutOfMemory, TopsError) as error:
            refused = isinstance(error, InvalidInput)
            return _failure(400 if refused else 503, type(error).__name__, str(error))

    return middleware


def _failure(status: int, kind: str, message: str) -> web.Response:
    return web.json_response({"error": {"type": kind, "message": message}}, status=status)


async def _stated(request: web.Request) -> web.Response:
    """State the model and the pruning."""
    encoder = request.app[ENCODER]
    pruning = encoder.runs(None)
    return web.json_response(
        {
            "format": FORMAT,
            "version": __version__,
            "model": encoder.spec.model,
            "hidden_size": encoder.hidden_size,
            "dtype": encoder.dtype,
            "pruning": pruning.model_dump(mode="json", exclude_unset=True) | {"keep": pruning.budget},
        }
    )


async def _encode(request: web.Request) -> web.Response:
    """Encode the picture whose file is the body."""
    picture = await request.read()
    # Opening and encoding take time that other requests of this loop need.
    encoded = await asyncio.to_thread(request.app[ENCODER].encode, picture)
    return web.json_response({"image_embeds": encoded.image_embeds, "kept": encoded.kept, "unpruned": encoded.unpruned})
