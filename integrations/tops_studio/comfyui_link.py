"""Send the graph on the page to a ComfyUI, with the pictures that it names."""

import asyncio
from pathlib import Path
from typing import Any

from aiohttp import web
from tops_workflow.comfyui_client import ComfyUIClient

from tops_engine.errors import InvalidInput, TopsError
from tops_engine.files import inside
from tops_studio.prompts import read_object
from tops_studio.studio import STUDIO, Studio

routes = web.RouteTableDef()

COMFYUI = web.AppKey("comfyui", str)

#: The address where ComfyUI listens unless told otherwise.
DEFAULT_COMFYUI = "http://127.0.0.1:8188"


@routes.post("/tops/open_in_comfyui")
async def open_in_comfyui(request: web.Request) -> web.Response:
    """Save a graph among the workflows of ComfyUI; answer its address and the name there.

    The address is the server's own setting, so that no page can send requests through Studio.
    """
    body = await read_object(request)
    graph, name = body.get("graph"), str(body.get("name") or "workflow")
    if not isinstance(graph, dict) or "nodes" not in graph:
        raise web.HTTPBadRequest(text="The body has no workflow.")
    address = request.app[COMFYUI]
    try:
        saved = await asyncio.to_thread(_send, request.app[STUDIO], address, name, graph)
    except InvalidInput as error:
        raise web.HTTPBadRequest(text=str(error)) from error
    except TopsError as error:
        sentence = f"{error} Start ComfyUI, or start Studio with --comfyui-address."
        raise web.HTTPBadGateway(text=sentence) from error
    return web.json_response({"url": address, "saved": saved})


def _send(studio: Studio, address: str, name: str, graph: dict[str, Any]) -> str:
    client = ComfyUIClient(address)
    for picture in _pictures(studio, graph):
        client.upload(picture)
    return client.save_workflow(name, graph)


def _pictures(studio: Studio, graph: dict[str, Any]) -> list[Path]:
    """Return the files directly in the input folder that widgets of the graph name."""
    nodes = [node for node in graph["nodes"] if isinstance(node, dict)]
    values = [value for node in nodes for value in _values(node) if isinstance(value, str) and value]
    folder, found = studio.folders.input, []
    for value in dict.fromkeys(values):
        if "/" in value or "\\" in value or len(value) > 255:
            continue
        try:
            path = inside(folder, value)
        except (InvalidInput, ValueError, OSError):
            continue
        if path.is_file():
            found.append(path)
    return found


def _values(node: dict[str, Any]) -> list[Any]:
    values = node.get("widgets_values")
    return list(values.values()) if isinstance(values, dict) else list(values or [])
