"""Serve what the pack has beside its nodes: templates, subgraphs, translations, help, and scripts of the page."""

import hashlib
import json
from pathlib import Path
from typing import Any

from aiohttp import web
from tops_workflow.formats import Graph
from tops_workflow.pack import pack_folder
from tops_workflow.saved_graph import MUTED

from tops_engine.errors import InvalidInput
from tops_engine.files import inside
from tops_studio.studio import STUDIO

routes = web.RouteTableDef()

#: The name of our nodes and templates in URLs.
PACK = "tops-engine"

#: The files of a language that have a key of their own in its translations; main.json has the other keys.
LOCALE_FILES = ("nodeDefs", "commands", "settings")

#: Nodes that the frontend draws by itself.
ONLY_SHOWN = {"MarkdownNote", "Note", "Reroute", "PrimitiveNode"}

OWN_WEB = Path(__file__).parent / "web"


@routes.get("/extensions")
async def extensions(request: web.Request) -> web.Response:
    """List the scripts of the page: Studio's own, and the pack's, which ComfyUI serves too."""
    folders = {"tops-studio": OWN_WEB, PACK: pack_folder() / "web"}
    scripts = [
        (name, path.relative_to(web_folder))
        for name, web_folder in folders.items()
        for path in sorted(web_folder.rglob("*.js"))
    ]
    return web.json_response([f"/extensions/{name}/{path.as_posix()}" for name, path in scripts])


@routes.get("/extensions/tops-studio/{path:.+}")
async def own_script(request: web.Request) -> web.StreamResponse:
    return web.FileResponse(_below(OWN_WEB, request.match_info["path"], (".js",)))


@routes.get(f"/extensions/{PACK}/{{path:.+}}")
async def pack_web(request: web.Request) -> web.StreamResponse:
    """Send a script, its texts or a help page of the pack."""
    path = _below(pack_folder() / "web", request.match_info["path"], (".js", ".json", ".md"))
    headers = {"Content-Type": "text/markdown"} if path.suffix == ".md" else {}
    return web.FileResponse(path, headers=headers)


@routes.get("/i18n")
async def translations(request: web.Request) -> web.Response:
    """Return the translations in the pack's folder ``locales``, by language."""
    folders = sorted((pack_folder() / "locales").glob("*/"))
    return web.json_response({folder.name: _translation(folder) for folder in folders})


def _translation(folder: Path) -> dict[str, Any]:
    found = {name: _read_json(folder / f"{name}.json") for name in LOCALE_FILES}
    return _read_json(folder / "main.json") | {name: texts for name, texts in found.items() if texts}


def _read_json(path: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return read


@routes.get("/global_subgraphs")
async def subgraphs(request: web.Request) -> web.Response:
    """List the subgraphs in the pack's folder ``subgraphs``."""
    return web.json_response({key: _subgraph(path) for key, path in _subgraph_files().items()})


@routes.get("/global_subgraphs/{key}")
async def subgraph(request: web.Request) -> web.Response:
    path = _subgraph_files().get(request.match_info["key"])
    if path is None:
        raise web.HTTPNotFound(text="There is no such subgraph.")
    return web.json_response(_subgraph(path) | {"data": path.read_text(encoding="utf-8")})


def _subgraph_files() -> dict[str, Path]:
    paths = sorted((pack_folder() / "subgraphs").glob("*.json"))
    return {hashlib.sha256(path.name.encode()).hexdigest(): path for path in paths}


def _subgraph(path: Path) -> dict[str, Any]:
    return {"source": "custom_node", "name": path.stem, "info": {"node_pack": f"custom_nodes.{PACK}"}}


@routes.get("/workflow_templates")
async def templates(request: web.Request) -> web.Response:
    """List the templates that run here; those that need a node of ComfyUI are left out."""
    present = set(request.app[STUDIO].nodes.classes) | ONLY_SHOWN
    graphs = {path.stem: _read_json(path) for path in sorted((pack_folder() / "workflows").glob("*.json"))}
    return web.json_response({PACK: [name for name, graph in graphs.items() if _runs(graph, present)]})


def _runs(graph: Graph, present: set[str]) -> bool:
    return all(node["type"] in present or node.get("mode") == MUTED for node in graph["nodes"])


@routes.get(f"/workflow_templates/{PACK}/{{path:.+}}")
async def template(request: web.Request) -> web.StreamResponse:
    path = _below(pack_folder() / "workflows", request.match_info["path"], (".json", ".jpg"))
    if path.suffix == ".jpg":
        return web.FileResponse(path)
    graph = json.loads(path.read_text(encoding="utf-8"))
    return web.json_response(without_absent_nodes(graph, set(request.app[STUDIO].nodes.classes)))


def without_absent_nodes(graph: Graph, present: set[str]) -> Graph:
    """Return a graph without the muted nodes that Studio lacks: a template suggests them as next steps in ComfyUI."""
    muted = [node["id"] for node in graph["nodes"] if node.get("mode") == MUTED]
    gone = {node["id"] for node in graph["nodes"] if node["id"] in muted and node["type"] not in present}
    if not gone:
        return graph
    for _ in muted:  # a muted node whose sources are all gone has nothing to do either
        sources = {one: {link[1] for link in graph["links"] if link[3] == one} for one in muted}
        gone |= {one for one in muted if sources[one] and sources[one] <= gone}
    links = [link for link in graph["links"] if not gone & {link[1], link[3]}]
    kept = {link[0] for link in links}
    nodes = [node for node in graph["nodes"] if node["id"] not in gone]
    for node in nodes:
        for entry in node.get("inputs") or []:
            entry["link"] = entry.get("link") if entry.get("link") in kept else None
        for output in node.get("outputs") or []:
            output["links"] = [number for number in output.get("links") or [] if number in kept]
    return graph | {"nodes": nodes, "links": links, "groups": []}


def _below(folder: Path, name: str, suffixes: tuple[str, ...]) -> Path:
    try:
        path = inside(folder, name)
    except InvalidInput as error:
        raise web.HTTPNotFound(text="There is no such file.") from error
    if path.suffix not in suffixes or not path.is_file():
        raise web.HTTPNotFound(text="There is no such file.")
    return path
