"""Serve and store pictures, and the frontend's own files (saved workflows)."""

import asyncio
import hashlib
import io
from pathlib import Path
from typing import Any

from aiohttp import BodyPartReader, web
from PIL import Image
from tops_workflow.core_nodes.files import VIDEOS

from tops_engine.errors import InvalidInput, TopsError, quote, shorten
from tops_engine.files import inside, write_whole
from tops_engine.media.formats import is_picture_name
from tops_engine.media.images import open_frames
from tops_studio.studio import STUDIO, Studio

routes = web.RouteTableDef()

MAX_UPLOAD = 256 * 2**20
MAX_USER_FILE = 32 * 2**20

#: The types that the browser may show in the page; all others are downloaded.
SHOWN = {
    ".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".webp": "image/webp", ".gif": "image/gif",
    ".bmp": "image/bmp", ".avif": "image/avif", ".mp4": "video/mp4", ".webm": "video/webm",
}  # fmt: skip


def _folder(studio: Studio, kind: str) -> Path:
    folders = {"input": studio.folders.input, "output": studio.folders.output, "temp": studio.folders.temp}
    if kind not in folders:
        raise web.HTTPBadRequest(text=f"There is no folder {quote(kind)}; use input, output or temp.")
    return folders[kind]


def _inside(folder: Path, *parts: str) -> Path:
    try:
        return inside(folder, *parts)
    except (InvalidInput, ValueError, OSError) as error:
        raise web.HTTPBadRequest(text="The path lies outside the folder.") from error


@routes.post("/upload/image")
async def upload(request: web.Request) -> web.Response:
    """Save a picture or video in the input folder; equal files are kept once, others of the same name get a number."""
    studio = request.app[STUDIO]
    fields: dict[str, str] = {}
    content: bytes | None = None
    try:
        async for part in await request.multipart():
            if isinstance(part, BodyPartReader) and part.name == "image":
                fields["filename"] = part.filename or ""
                content = await _read_part(part)
            elif isinstance(part, BodyPartReader) and part.name:
                fields[part.name] = (await part.read(decode=True)).decode(errors="replace")[:500]
    except (ValueError, AssertionError) as error:
        raise web.HTTPBadRequest(text="The upload is not a multipart form.") from error
    name = Path(fields.get("filename", "").replace("\\", "/")).name
    if not content or not name:
        raise web.HTTPBadRequest(text="The upload has no picture.")
    kind = fields.get("type") or "input"
    folder = _inside(_folder(studio, kind), fields.get("subfolder") or ".")
    path = _inside(folder, name)
    saved = await asyncio.to_thread(_keep, path, content, fields.get("overwrite", "").lower() in ("true", "1"))
    return web.json_response({"name": saved.name, "subfolder": fields.get("subfolder", ""), "type": kind})


async def _read_part(part: BodyPartReader) -> bytes:
    pieces, size = [], 0
    while piece := await part.read_chunk(2**18):
        size += len(piece)
        if size > MAX_UPLOAD:
            raise web.HTTPRequestEntityTooLarge(MAX_UPLOAD, size)
        pieces.append(piece)
    return b"".join(pieces)


def _keep(path: Path, content: bytes, overwrite: bool) -> Path:
    is_picture = is_picture_name(path.name)
    if not is_picture and path.suffix.lower() not in VIDEOS:
        raise web.HTTPBadRequest(text=f"{shorten(path.name)} is neither a picture nor a video.")
    try:
        if is_picture:
            open_frames(content, path.name)
        path.parent.mkdir(parents=True, exist_ok=True)
        target, number = path, 0
        while target.exists() and not overwrite:
            if hashlib.sha256(target.read_bytes()).digest() == hashlib.sha256(content).digest():
                return target
            number += 1
            target = path.with_name(f"{path.stem} ({number}){path.suffix}")
        write_whole(target, content)
    except TopsError as error:
        raise web.HTTPBadRequest(text=f"The upload is refused: {error}") from error
    except OSError as error:
        raise web.HTTPBadRequest(text=f"{shorten(path.name)} cannot be written: {error.strerror}.") from error
    return target


@routes.get("/view")
async def view(request: web.Request) -> web.StreamResponse:
    """Send a picture or video; ``preview=webp;75`` compresses it, ``channel=rgb|a`` selects channels.

    A picture in a format that browsers do not show is sent as PNG.
    """
    query = request.query
    folder = _folder(request.app[STUDIO], query.get("type", "output"))
    path = _inside(folder, query.get("subfolder", "") or ".", query.get("filename", ""))
    if not path.is_file():
        raise web.HTTPNotFound(text="There is no such file.")
    channel, preview = query.get("channel", "rgba"), query.get("preview")
    is_shown = path.suffix.lower() in SHOWN
    if is_picture_name(path.name) and (preview or channel != "rgba" or not is_shown):
        body, kind = await asyncio.to_thread(_rendered, path, preview, channel)
        return web.Response(body=body, content_type=kind)
    kind = SHOWN.get(path.suffix.lower(), "application/octet-stream")
    placing = "inline" if is_shown else "attachment"
    name = path.name.encode("ascii", "replace").decode().replace('"', "'").replace("\\", "")
    headers = {"Content-Type": kind, "Content-Disposition": f'{placing}; filename="{name}"'}
    return web.FileResponse(path, headers=headers)


def _rendered(path: Path, preview: str | None, channel: str) -> tuple[bytes, str]:
    try:
        picture: Image.Image = open_frames(path, path.name)[0].convert("RGBA")
    except TopsError as error:
        raise web.HTTPBadRequest(text=str(error)) from error
    if channel == "rgb":
        picture = picture.convert("RGB")
    elif channel == "a":
        alpha = picture.getchannel("A")
        picture = Image.new("RGBA", picture.size)
        picture.putalpha(alpha)
    kind, _, quality = (preview or "png").partition(";")
    kind = kind if kind in ("webp", "jpeg") else "png"
    if kind == "jpeg":
        picture = picture.convert("RGB")
    stream = io.BytesIO()
    picture.save(stream, kind.upper(), quality=int(quality) if quality.isdecimal() else 90)
    return stream.getvalue(), f"image/{kind}"


@routes.get("/internal/files/{kind}")
async def list_files(request: web.Request) -> web.Response:
    folder = _folder(request.app[STUDIO], request.match_info["kind"])
    found = sorted((path for path in folder.iterdir() if path.is_file()), key=lambda path: -path.stat().st_mtime)
    return web.json_response([path.name for path in found if not path.name.startswith(".")])


@routes.get("/userdata")
async def list_user_files(request: web.Request) -> web.Response:
    """List the files below a directory of the user's folder."""
    root = request.app[STUDIO].user_folder
    folder = _inside(root, request.query.get("dir", ""))
    if not folder.is_dir():
        return web.json_response([])
    pattern = "**/*" if request.query.get("recurse", "").lower() == "true" else "*"
    files = sorted(path for path in folder.glob(pattern) if path.is_file())
    if request.query.get("full_info", "").lower() == "true":
        return web.json_response([_file_info(path, folder) for path in files])
    names = [path.relative_to(folder).as_posix() for path in files]
    if request.query.get("split", "").lower() == "true":
        return web.json_response([[name, *name.split("/")] for name in names])
    return web.json_response(names)


@routes.get("/userdata/{file}")
async def read_user_file(request: web.Request) -> web.StreamResponse:
    path = _user_file(request)
    if not path.is_file():
        raise web.HTTPNotFound(text="There is no such file.")
    headers = {"Content-Disposition": "attachment", "Cache-Control": "no-store"}
    return web.FileResponse(path, headers=headers)


@routes.post("/userdata/{file}")
async def write_user_file(request: web.Request) -> web.Response:
    path = _user_file(request)
    if path.exists() and request.query.get("overwrite", "true").lower() == "false":
        raise web.HTTPConflict(text="The file exists.")
    content = await request.read()
    if len(content) > MAX_USER_FILE:
        raise web.HTTPRequestEntityTooLarge(MAX_USER_FILE, len(content))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, content)
    except OSError as error:
        raise web.HTTPBadRequest(text=f"The file cannot be written: {error.strerror}.") from error
    return _told(request, path)


@routes.delete("/userdata/{file}")
async def delete_user_file(request: web.Request) -> web.Response:
    path = _user_file(request)
    if not path.is_file():
        raise web.HTTPNotFound(text="There is no such file.")
    path.unlink()
    return web.Response(status=204)


@routes.post("/userdata/{file}/move/{target}")
async def move_user_file(request: web.Request) -> web.Response:
    path = _user_file(request)
    target = _inside(request.app[STUDIO].user_folder, request.match_info["target"])
    if not path.is_file():
        raise web.HTTPNotFound(text="There is no such file.")
    if target.exists() and request.query.get("overwrite", "true").lower() == "false":
        raise web.HTTPConflict(text="The file exists.")
    target.parent.mkdir(parents=True, exist_ok=True)
    path.replace(target)
    return _told(request, target)


def _user_file(request: web.Request) -> Path:
    root = request.app[STUDIO].user_folder
    path = _inside(root, request.match_info["file"])
    if path == root.resolve():
        raise web.HTTPBadRequest(text="The path names no file.")
    return path


def _told(request: web.Request, path: Path) -> web.Response:
    root = request.app[STUDIO].user_folder.resolve()
    if request.query.get("full_info", "").lower() == "true":
        return web.json_response(_file_info(path, root))
    return web.json_response(path.relative_to(root).as_posix())


def _file_info(path: Path, root: Path) -> dict[str, Any]:
    status = path.stat()
    name = path.relative_to(root).as_posix()
    times = {"modified": int(status.st_mtime * 1000), "created": int(status.st_ctime * 1000)}
    return {"path": name, "size": status.st_size, **times}
