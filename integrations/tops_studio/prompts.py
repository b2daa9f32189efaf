"""Queue, follow and stop prompts."""

import asyncio
import math
from typing import Any
from uuid import UUID, uuid4

from aiohttp import web
from tops_workflow.faults import Checked
from tops_workflow.formats import is_prompt

from tops_engine.errors import shorten
from tops_engine.text import valid_text
from tops_studio.jobs import FINISHED, Job
from tops_studio.studio import STUDIO

routes = web.RouteTableDef()

#: The job list shows this many characters of a text.
PREVIEW_LENGTH = 1024


async def read_json(request: web.Request) -> Any:
    """Return the request's JSON body; raise a 400 that states the fault if it is not JSON."""
    try:
        return await request.json()
    except (ValueError, LookupError, RecursionError) as error:  # LookupError: an unknown encoding
        raise web.HTTPBadRequest(text="The body is not JSON.") from error


async def read_object(request: web.Request) -> dict[str, Any]:
    """Return the request's body, or answer 400 if it is no JSON object."""
    body = await read_json(request)
    if not isinstance(body, dict):
        raise web.HTTPBadRequest(text="The body is not a JSON object.")
    return body


def _ids(body: dict[str, Any], name: str) -> list[str]:
    """Return a list of ids in a body, or answer 400."""
    ids = body.get(name) or []
    if not isinstance(ids, list):
        raise web.HTTPBadRequest(text=f"{name} is not a list of ids.")
    return [valid_text(str(one)) for one in ids]


def _refuse(kind: str, message: str, details: str = "", node_errors: Any = None) -> web.Response:
    error = {"type": kind, "message": message, "details": details, "extra_info": {}}
    return web.json_response({"error": error, "node_errors": node_errors or {}}, status=400)


@routes.post("/prompt")
async def queue_prompt(request: web.Request) -> web.Response:
    """Check a prompt and queue it; answer 400 with ComfyUI's errors, by which the frontend marks nodes."""
    studio = request.app[STUDIO]
    body = await read_json(request)
    prompt = body.get("prompt") if isinstance(body, dict) else None
    if prompt is None:
        return _refuse("no_prompt", "No prompt provided")
    if not is_prompt(prompt):
        return _refuse("invalid_prompt", "The prompt is not in the API format")
    try:
        job_id = str(UUID(body["prompt_id"])) if body.get("prompt_id") else str(uuid4())
    except (TypeError, ValueError, AttributeError):
        return _refuse("invalid_prompt_id", "prompt_id is not a UUID", shorten(str(body["prompt_id"])))
    targets = body.get("partial_execution_targets")
    targets = targets if isinstance(targets, list) else None
    checked: Checked = await asyncio.to_thread(studio.runner.check, prompt, targets)
    if checked.fault is not None:
        refused = {"error": checked.fault.as_json(), "node_errors": checked.errors_as_json()}
        return web.json_response(refused, status=400)
    extra = body.get("extra_data") if isinstance(body.get("extra_data"), dict) else {}
    client_id = body.get("client_id") if isinstance(body.get("client_id"), str) else None
    place = _place_in_queue(body.get("number"))
    job = studio.jobs.add(job_id, prompt, checked, extra, client_id, place, bool(body.get("front")))
    if job is None:
        return web.json_response({"error": "The queue is full."}, status=503)
    answer = {"prompt_id": job.id, "number": job.number, "node_errors": checked.errors_as_json()}
    return web.json_response(answer)


def _place_in_queue(number: Any) -> float | None:
    """Return the number that a client wants for its prompt, if it is one."""
    try:
        place = float(number) if isinstance(number, int | float) else math.nan
    except OverflowError:
        return None
    return place if math.isfinite(place) else None


@routes.get("/prompt")
async def queue_length(request: web.Request) -> web.Response:
    return web.json_response({"exec_info": {"queue_remaining": request.app[STUDIO].jobs.remaining}})


@routes.get("/queue")
async def show_queue(request: web.Request) -> web.Response:
    jobs = request.app[STUDIO].jobs.unfinished()
    rows: dict[bool, list[Any]] = {True: [], False: []}
    for job in jobs:
        rows[job.status == "in_progress"].append([job.number, job.id, job.prompt, job.extra_data, job.checked.outputs])
    return web.json_response({"queue_running": rows[True], "queue_pending": rows[False]})


@routes.post("/queue")
async def change_queue(request: web.Request) -> web.Response:
    body = await read_object(request)
    jobs = request.app[STUDIO].jobs
    waiting = {job.id for job in jobs.unfinished() if job.status == "pending"}
    wanted = waiting if body.get("clear") else waiting & set(_ids(body, "delete"))
    await asyncio.to_thread(jobs.cancel, sorted(wanted))
    return web.Response()


@routes.post("/interrupt")
async def interrupt(request: web.Request) -> web.Response:
    body = await read_json(request) if request.can_read_body and request.content_length else {}
    request.app[STUDIO].jobs.interrupt(body.get("prompt_id") if isinstance(body, dict) else None)
    return web.Response()


@routes.post("/free")
async def free(request: web.Request) -> web.Response:
    body = await read_object(request)
    request.app[STUDIO].jobs.free(bool(body.get("unload_models")), bool(body.get("free_memory")))
    return web.Response()


@routes.get("/history")
async def history(request: web.Request) -> web.Response:
    limit = _number(request, "max_items", 200)
    jobs, _ = request.app[STUDIO].store.jobs(FINISHED, limit, _number(request, "offset", 0))
    return web.json_response({job["id"]: _history_entry(job) for job in jobs})


@routes.get("/history/{job_id}")
async def history_of(request: web.Request) -> web.Response:
    job = request.app[STUDIO].store.job(request.match_info["job_id"])
    return web.json_response({job["id"]: _history_entry(job)} if job is not None else {})


@routes.post("/history")
async def change_history(request: web.Request) -> web.Response:
    body = await read_object(request)
    store = request.app[STUDIO].store
    if body.get("clear"):
        store.delete_jobs(None)
    else:
        store.delete_jobs(_ids(body, "delete"))
    return web.Response()


@routes.get("/jobs")
async def list_jobs(request: web.Request) -> web.Response:
    studio = request.app[STUDIO]
    statuses = [status for status in request.query.get("status", "").split(",") if status]
    statuses = statuses or ["in_progress", "pending", *FINISHED]
    limit, offset = _number(request, "limit", 100), _number(request, "offset", 0)
    open_jobs = [job.as_json() for job in studio.jobs.unfinished() if job.status in statuses]
    done = [status for status in statuses if status in FINISHED]
    finished, total = studio.store.jobs(done, limit, max(0, offset - len(open_jobs)))
    # A job that ended between the two queries is in both lists.
    seen = {job["id"] for job in open_jobs}
    both = sum(job["id"] in seen for job in finished)
    shown = (open_jobs[offset:] + [job for job in finished if job["id"] not in seen])[:limit]
    total += len(open_jobs) - both
    page = {"offset": offset, "limit": limit, "total": total, "has_more": offset + len(shown) < total}
    return web.json_response({"jobs": [_job_row(job) for job in shown], "pagination": page})


@routes.get("/jobs/{job_id}")
async def show_job(request: web.Request) -> web.Response:
    job = _find(request)
    if job is None:
        return web.json_response({"error": "There is no such job."}, status=404)
    more = {
        "workflow": {"prompt": job["prompt"], "extra_data": job["extra_data"]},
        "outputs": job["outputs"],
        "execution_status": _status(job),
    }
    return web.json_response(_job_row(job) | more)


@routes.post("/jobs/cancel")
async def cancel_jobs(request: web.Request) -> web.Response:
    body = await read_object(request)
    found = await asyncio.to_thread(request.app[STUDIO].jobs.cancel, _ids(body, "job_ids"))
    return web.json_response({"cancelled": bool(found)})


@routes.post("/jobs/{job_id}/cancel")
async def cancel_job(request: web.Request) -> web.Response:
    found = await asyncio.to_thread(request.app[STUDIO].jobs.cancel, [request.match_info["job_id"]])
    return web.json_response({"cancelled": bool(found)}, status=200 if found else 404)


def _find(request: web.Request) -> dict[str, Any] | None:
    studio, job_id = request.app[STUDIO], request.match_info["job_id"]
    waiting: list[Job] = [job for job in studio.jobs.unfinished() if job.id == job_id]
    return waiting[0].as_json() if waiting else studio.store.job(job_id)


def _number(request: web.Request, name: str, default: int) -> int:
    text = request.query.get(name, "")
    return min(int(text), 10_000) if text.isdecimal() else default


def _status(job: dict[str, Any]) -> dict[str, Any]:
    done = job["status"] == "completed"
    return {"status_str": "success" if done else "error", "completed": done, "messages": job["messages"]}


def _history_entry(job: dict[str, Any]) -> dict[str, Any]:
    return {
        "prompt": [job["number"], job["id"], job["prompt"], job["extra_data"], job["targets"]],
        "outputs": job["outputs"],
        "status": _status(job),
        "meta": {node: {"node_id": node, "display_node": node, "real_node_id": node} for node in job["outputs"]},
    }


def _job_row(job: dict[str, Any]) -> dict[str, Any]:
    row: dict[str, Any] = {
        "id": job["id"],
        "status": job["status"],
        "priority": job["number"],
        "create_time": job["create_time"],
        "outputs_count": sum(len(values) for shown in job["outputs"].values() for values in shown.values()),
    }
    optional = {
        "execution_start_time": job["start_time"],
        "execution_end_time": job["end_time"],
        "preview_output": _preview(job["outputs"]),
        "execution_error": job["error"],
    }
    return row | {name: value for name, value in optional.items() if value is not None}


def _preview(outputs: dict[str, Any]) -> dict[str, Any] | None:
    """Return the last picture, else the last text."""
    for kind in ("images", "text"):
        for node, shown in reversed(outputs.items()):
            for value in shown.get(kind, [])[-1:]:
                content = value if kind == "images" else {"content": str(value)[:PREVIEW_LENGTH]}
                return {"nodeId": node, "mediaType": kind, **content}
    return None
