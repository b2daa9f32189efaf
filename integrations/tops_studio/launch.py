"""Start and stop the server."""

import asyncio
import signal
from collections.abc import Callable
from pathlib import Path

from aiohttp import web

from tops_engine.errors import InvalidInput
from tops_studio.comfyui_link import DEFAULT_COMFYUI
from tops_studio.server import create_app
from tops_studio.studio import Studio


def serve(
    folder: Path,
    host: str,
    port: int,
    token: str | None,
    model: str | None,
    started: Callable[[str], None],
    comfyui: str = DEFAULT_COMFYUI,
) -> None:
    """Serve until Ctrl-C or SIGTERM.

    Args:
        folder: See :class:`tops_studio.studio.Studio`.
        host: The address to listen on.
        port: The port; 0 takes a free one.
        token: See :func:`tops_studio.security.guard`.
        model: The model to load in the background.
        started: Called with the address of the page.
        comfyui: See :func:`tops_studio.server.create_app`.

    Raises:
        InvalidInput: If the server cannot listen on the address.
        MissingDependency: If the frontend is not installed.
    """
    studio = Studio.open(folder.expanduser())
    app = create_app(studio, token, comfyui=comfyui)
    if model is not None:
        studio.load_model(model)
    asyncio.run(_serve(app, host, port, token, started))


async def _serve(app: web.Application, host: str, port: int, token: str | None, started: Callable[[str], None]) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        try:
            loop.add_signal_handler(number, stop.set)
        except NotImplementedError:  # On Windows, Ctrl-C arrives as an exception.
            break
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=3)
    await runner.setup()
    site = web.TCPSite(runner, host, port)
    try:
        await site.start()
    except OSError as error:
        await runner.cleanup()
        text = f"Port {port} on {host} cannot be used ({error.strerror}); choose another with --port."
        raise InvalidInput(text) from error
    taken = site._server.sockets[0].getsockname()[1] if site._server is not None else port  # type: ignore[attr-defined]
    shown = f"[{host}]" if ":" in host else host
    started(f"http://{shown}:{taken}/" + (f"?token={token}" if token else ""))
    try:
        await stop.wait()
    finally:
        await runner.cleanup()
