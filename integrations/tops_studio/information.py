"""Information about the host for the frontend: nodes, settings, the machine."""

import asyncio
import platform
import sys
from importlib.metadata import version
from typing import Any

import psutil
import torch
from aiohttp import web
from tops_workflow.host import QuietHost, hosted

from tops_engine import __version__
from tops_studio.events import FEATURES
from tops_studio.prompts import read_json
from tops_studio.studio import STUDIO, Studio

routes = web.RouteTableDef()

#: Initial settings, where the frontend's own defaults assume ComfyUI.
INITIAL_SETTINGS: dict[str, Any] = {"Comfy.Workflow.ShowMissingModelsWarning": False}


@routes.get("/users")
async def users(request: web.Request) -> web.Response:
    return web.json_response({"storage": "server", "migrated": True})


@routes.get("/settings")
async def settings(request: web.Request) -> web.Response:
    return web.json_response(_settings(request))


def _settings(request: web.Request) -> dict[str, Any]:
    kept = INITIAL_SETTINGS | request.app[STUDIO].store.settings()
    # With this setting and no open graph, the frontend shows ComfyUI's diffusion graph, whose nodes Studio lacks.
    return {name: value for name, value in kept.items() if name != "Comfy.TutorialCompleted"}


@routes.post("/settings")
async def keep_settings(request: web.Request) -> web.Response:
    body = await read_json(request)
    if not isinstance(body, dict):
        raise web.HTTPBadRequest(text="Settings are an object.")
    request.app[STUDIO].store.set_settings(body)
    return web.Response()


@routes.get("/settings/{name}")
async def setting(request: web.Request) -> web.Response:
    return web.json_response(_settings(request).get(request.match_info["name"]))


@routes.post("/settings/{name}")
async def keep_setting(request: web.Request) -> web.Response:
    request.app[STUDIO].store.set_settings({request.match_info["name"]: await read_json(request)})
    return web.Response()


@routes.get("/object_info")
async def object_info(request: web.Request) -> web.Response:
    return web.json_response(await asyncio.to_thread(_definitions, request.app[STUDIO]))


@routes.get("/object_info/{node}")
async def object_info_of(request: web.Request) -> web.Response:
    name = request.match_info["node"]
    found = await asyncio.to_thread(_definitions, request.app[STUDIO])
    return web.json_response({name: found[name]} if name in found else {})


def _definitions(studio: Studio) -> dict[str, Any]:
    with hosted(QuietHost(studio.folders)):
        return studio.nodes.definitions()


@routes.get("/features")
async def features(request: web.Request) -> web.Response:
    return web.json_response(FEATURES)


@routes.get("/system_stats")
async def system_stats(request: web.Request) -> web.Response:
    memory = psutil.virtual_memory()
    frontend = version("comfyui-frontend-package")
    system = {
        "os": sys.platform,
        "ram_total": memory.total,
        "ram_free": memory.available,
        "comfyui_version": f"TOPS Studio {__version__}",
        "required_frontend_version": frontend,
        "installed_templates_version": "",
        "required_templates_version": "",
        "comfy_package_versions": [
            {"name": "comfyui-frontend-package", "installed": frontend, "required": frontend},
        ],
        "python_version": platform.python_version(),
        "pytorch_version": torch.__version__,
        "embedded_python": False,
        "deploy_environment": "tops-studio",
        # With this option the frontend asks no outside address for release notes.
        "argv": ["tops", "studio", "--disable-api-nodes"],
    }
    return web.json_response({"system": system, "devices": _devices(memory)})


def _devices(memory: Any) -> list[dict[str, Any]]:
    if not torch.cuda.is_available():
        room = {"vram_total": memory.total, "vram_free": memory.available}
        none = {"torch_vram_total": memory.total, "torch_vram_free": memory.available}
        return [{"name": "cpu", "type": "cpu", "index": None, **room, **none}]
    devices = []
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        reserved = torch.cuda.memory_reserved(index)
        unused = reserved - torch.cuda.memory_allocated(index)
        room = {"vram_total": total, "vram_free": free, "torch_vram_total": reserved, "torch_vram_free": unused}
        name = f"cuda:{index} {torch.cuda.get_device_name(index)}"
        devices.append({"name": name, "type": "cuda", "index": index, **room})
    return devices


@routes.get("/node_replacements")
@routes.get("/view_metadata/{folder}")
@routes.get("/internal/folder_paths")
async def nothing(request: web.Request) -> web.Response:
    return web.json_response({})


@routes.get("/embeddings")
@routes.get("/experiment/models")
@routes.get("/experiment/models/{folder}")
async def no_models(request: web.Request) -> web.Response:
    return web.json_response([])


@routes.get("/templates/{name:index.*}")
async def core_templates(request: web.Request) -> web.Response:
    """Return an empty list of ComfyUI's own templates: these are diffusion graphs, which Studio cannot run."""
    return web.json_response({} if request.match_info["name"] == "index_logo.json" else [])


@routes.get("/user.css")
async def user_styles(request: web.Request) -> web.StreamResponse:
    path = request.app[STUDIO].user_folder / "user.css"
    headers = {"Content-Type": "text/css"}
    return web.FileResponse(path, headers=headers) if path.is_file() else web.Response(headers=headers)
