"""The web application: the frontend's static files, its HTTP interface, and the page that a new user sees first."""

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlencode

from aiohttp import web
from aiohttp.typedefs import Handler

from tops_engine.errors import MissingDependency
from tops_studio import comfyui_link, files, information, logs, pack_content, prompts
from tops_studio.comfyui_link import COMFYUI, DEFAULT_COMFYUI
from tops_studio.events import FEATURES
from tops_studio.logs import LOG, LogLines
from tops_studio.pack_content import PACK
from tops_studio.security import guard
from tops_studio.studio import STUDIO, Studio

#: The template that a new user sees.
FIRST_TEMPLATE = "ask_about_an_image"
VISITED = "tops_studio_visited"

FRONTEND_TITLE, TITLE = "<title>ComfyUI</title>", "<title>TOPS Studio</title>"

#: The most bytes of a body without a file: prompts contain their workflow, which may have long texts.
MAX_BODY = 64 * 2**20


def frontend_folder() -> Path:
    """Return the folder of the official frontend's static files.

    Raises:
        MissingDependency: If its package is not installed.
    """
    try:
        import comfyui_frontend_package
    except ImportError as error:
        raise MissingDependency("TOPS Studio needs the frontend: pip install 'tops-engine[studio]'.") from error
    return Path(comfyui_frontend_package.__file__).parent / "static"


def create_app(
    studio: Studio, token: str | None = None, frontend: Path | None = None, comfyui: str = DEFAULT_COMFYUI
) -> web.Application:
    """Return the web application.

    Args:
        studio: The Studio that it serves.
        token: See :func:`tops_studio.security.guard`.
        frontend: The folder of the frontend's static files; the installed package by default.
        comfyui: The address of the ComfyUI that "Open in ComfyUI" sends graphs to.
    """
    app = web.Application(middlewares=[guard(token)], client_max_size=MAX_BODY)
    app[STUDIO] = studio
    app[COMFYUI] = comfyui
    app[LOG] = LogLines()
    static = frontend or frontend_folder()
    app.cleanup_ctx.append(_live)
    app.router.add_get("/ws", _websocket)
    app.router.add_get("/", _index(static))
    for module in (prompts, files, information, pack_content, comfyui_link, logs):
        app.router.add_routes(module.routes)
        # The frontend sends requests below /api; scripts written for ComfyUI use both forms.
        for one in module.routes:
            if isinstance(one, web.RouteDef) and not one.path.startswith(("/internal", "/extensions/")):
                app.router.add_route(one.method, f"/api{one.path}", one.handler)
    app.router.add_static("/", static)
    return app


async def _live(app: web.Application) -> AsyncIterator[None]:
    studio = app[STUDIO]
    logging.getLogger().addHandler(app[LOG])
    studio.clients.start()
    studio.jobs.start()
    yield
    logging.getLogger().removeHandler(app[LOG])
    await studio.clients.close()
    await asyncio.to_thread(studio.jobs.stop)
    studio.store.close()


async def _websocket(request: web.Request) -> web.StreamResponse:
    studio = request.app[STUDIO]
    greetings = [{"type": "status", "data": studio.jobs.status()}, {"type": "feature_flags", "data": FEATURES}]
    running = [job for job in studio.jobs.unfinished() if job.status == "in_progress"]
    client_id = request.query.get("clientId")
    for job in running:
        if client_id is not None and job.client_id == client_id:
            greetings.append({"type": "execution_start", "data": {"prompt_id": job.id}})
    return await studio.clients.serve(request, greetings)


def _index(static: Path) -> Handler:
    async def index(request: web.Request) -> web.StreamResponse:
        if not request.query_string and VISITED not in request.cookies:
            # A browser that has used Studio before opens its own graphs instead.
            where = urlencode({"template": FIRST_TEMPLATE, "source": PACK})
            response: web.StreamResponse = web.Response(status=302, headers={"Location": f"/?{where}"})
        else:
            page = (static / "index.html").read_text(encoding="utf-8").replace(FRONTEND_TITLE, TITLE)
            headers = {"Cache-Control": "no-cache", "Content-Security-Policy": _own_content(request.host)}
            response = web.Response(text=page, content_type="text/html", headers=headers)
        response.set_cookie(VISITED, "1", max_age=10 * 365 * 86400, samesite="Strict")
        return response

    return index


def _own_content(host: str) -> str:
    """Return the content security policy of the page: the browser loads and sends nothing but to this server."""
    return (
        "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; "
        f"connect-src 'self' ws://{host} wss://{host} data: blob:; frame-ancestors 'self'"
    )
