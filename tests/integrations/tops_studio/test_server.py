"""Studio's HTTP and websocket interface, as the frontend and scripts use it."""

import asyncio
import io
import json
import struct
import threading
import time
import zlib
from typing import Any

import pytest
from aiohttp import FormData
from PIL import Image
from tops_studio.studio import Studio
from tops_workflow.formats import read_workflow

from tests.conftest import Picture
from tests.integrations.tops_studio.conftest import Client, ask_prompt, caption_prompt, node, save_clip


def png(picture: Image.Image) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    return stream.getvalue()


async def upload(client: Client, content: bytes, name: str, **fields: str) -> tuple[int, Any]:
    form = FormData()
    form.add_field("image", content, filename=name, content_type="image/png")
    for key, value in fields.items():
        form.add_field(key, value)
    async with client.session.post("/api/upload/image", data=form) as response:
        text = await response.text()
        return response.status, json.loads(text) if response.status == 200 else text


async def test_everything_the_frontend_asks_at_its_start_is_answered(client: Client) -> None:
    assert await client.get("/api/users") == {"storage": "server", "migrated": True}
    assert isinstance(await client.get("/api/settings"), dict)
    nodes = await client.get("/api/object_info")
    assert {"LoadImage", "PreviewAny", "TOPSAsk"} <= set(nodes)
    for name, entry in nodes.items():
        assert entry["name"] == name
        assert entry["python_module"].split(".")[0] in ("nodes", "custom_nodes")
        assert set(entry["input_order"]) == set(entry["input"])
        assert len(entry["output"]) == len(entry["output_name"]) == len(entry["output_is_list"])
    assert nodes["LoadImage"]["input"]["required"]["image"][0][0].startswith("tops_")
    stats = await client.get("/api/system_stats")
    assert stats["devices"]
    assert stats["system"]["ram_total"] > stats["system"]["ram_free"] > 0
    for path in ("features", "i18n", "global_subgraphs", "node_replacements"):
        assert isinstance(await client.get(f"/api/{path}"), dict)
    for path in ("embeddings", "experiment/models", "userdata?dir=workflows&recurse=true&full_info=true"):
        assert await client.get(f"/api/{path}") == []
    for name in ("index.json", "index.ja.json", "index.zh-TW.json"):
        assert await client.get(f"/templates/{name}") == []
    assert await client.get("/templates/index_logo.json") == {}
    jobs = await client.get("/api/jobs?status=in_progress,pending&limit=10&offset=0")
    assert jobs == {"jobs": [], "pagination": {"offset": 0, "limit": 10, "total": 0, "has_more": False}}
    page = await (await client.session.get("/?template=x")).text()
    assert "<html" in page


async def test_a_newcomer_is_led_to_the_first_template_and_later_to_their_own_graphs(client: Client) -> None:
    response = await client.session.get("/", allow_redirects=False)
    assert response.status == 302
    assert response.headers["Location"] == "/?template=ask_about_an_image&source=tops-engine"
    assert (await client.session.get("/", allow_redirects=False)).status == 200


async def test_templates_and_node_help_are_served_and_nothing_beside_them(client: Client) -> None:
    (pack,) = await client.get("/api/workflow_templates")
    names = (await client.get("/api/workflow_templates"))[pack]
    assert "ask_about_an_image" in names
    for name in names:
        graph = await client.get(f"/api/workflow_templates/{pack}/{name}.json")
        assert graph["nodes"]
    for path in (f"/extensions/{pack}/docs/TOPSAsk.md",):
        assert "TOPS Ask" in await (await client.session.get(path)).text()
    for path in (
        f"/extensions/{pack}/docs/%2e%2e/%2e%2e/pyproject.toml",
        f"/extensions/{pack}/docs/..%2f..%2fREADME.md",
        f"/api/workflow_templates/{pack}/..%2Fpyproject.toml",
        f"/api/workflow_templates/{pack}/%2Fetc%2Fpasswd",
    ):
        assert (await client.session.get(path)).status in (403, 404), path


async def test_templates_open_without_nodes_that_are_not_here(client: Client) -> None:
    known = set(await client.get("/api/object_info")) | {"MarkdownNote", "Note"}
    (pack,) = templates = await client.get("/api/workflow_templates")
    for name in templates[pack]:
        graph = await client.get(f"/api/workflow_templates/{pack}/{name}.json")
        assert {entry["type"] for entry in graph["nodes"]} <= known
        ids = {entry["id"] for entry in graph["nodes"]}
        numbers = {link[0] for link in graph["links"]}
        assert all({link[1], link[3]} <= ids for link in graph["links"])
        used = {
            entry["link"] for one in graph["nodes"] for entry in one.get("inputs") or [] if entry["link"] is not None
        }
        assert used <= numbers
        assert (await client.session.get(f"/api/workflow_templates/{pack}/{name}.jpg")).status == 200


async def test_a_prompt_runs_and_everything_about_it_is_told(client: Client, studio: Studio) -> None:
    first = await client.connect()
    assert first["type"] == "status"
    assert first["data"]["sid"] == client.id
    graph: dict[str, Any] = {"nodes": [], "links": []}
    job_id = await client.queue(ask_prompt(), extra_data={"extra_pnginfo": {"workflow": graph}})
    messages = await client.messages_of(job_id)
    kinds = [kind for kind, _ in messages]
    assert kinds[0] == "execution_start"
    assert kinds[-2:] == ["execution_success", "executing"]
    executing = [data["node"] for kind, data in messages if kind == "executing"]
    assert set(executing[:2]) == {"1", "2"}
    assert executing[2:] == ["3", "4", "5", None]
    assert kinds.index("text") < kinds.index("executed"), "the answer streams while it is written"
    progress = [data for kind, data in messages if kind == "progress"]
    assert progress[-1] == {"node": "3", "value": 8, "max": 8, "prompt_id": job_id}
    states = [data["nodes"] for kind, data in messages if kind == "progress_state"][-1]
    assert states["3"]["state"] == "finished"

    entry = (await client.get(f"/api/history/{job_id}"))[job_id]
    assert entry["status"]["status_str"] == "success"
    assert entry["outputs"]["5"] == {"text": ["5"]}
    (shown,) = entry["outputs"]["4"]["images"]
    async with client.session.get("/api/view", params=shown) as response:
        picture = Image.open(io.BytesIO(await response.read()))
        assert response.headers["Content-Type"] == "image/png"
    assert picture.width > 500
    assert read_workflow(studio.folders.temp / shown["filename"]).graph == graph
    jobs = (await client.get("/api/jobs"))["jobs"]
    assert [(job["id"], job["status"], job["preview_output"]["nodeId"]) for job in jobs] == [(job_id, "completed", "4")]
    detail = await client.get(f"/api/jobs/{job_id}")
    assert detail["workflow"]["prompt"] == ask_prompt()
    assert list(await client.get("/api/history")) == [job_id]
    await client.post("/api/history", {"delete": [job_id]})
    assert await client.get("/api/history") == {}


async def test_running_again_and_changing_only_the_question(client: Client) -> None:
    await client.connect()
    for question, cached in [("What number is written?", None), ("What number is written?", 5), ("What colour?", 2)]:
        job_id = await client.queue(ask_prompt(question))
        messages = await client.messages_of(job_id)
        told = next(data["nodes"] for kind, data in messages if kind == "execution_cached")
        assert cached is None or len(told) == cached


@pytest.mark.parametrize(
    ("change", "kind", "node_id"),
    [
        ({"max_tokens": 0}, "value_smaller_than_min", "3"),
        ({"max_tokens": "many"}, "invalid_input_type", "3"),
        # A picture without a text is a question; a blank prompt alone is none.
        ({"prompt": "  ", "image": None}, "exception_during_validation", "3"),
        ({"model": ["9", 0]}, "bad_linked_input", "3"),
        ({"model": ["1", 0]}, "return_type_mismatch", "3"),
    ],
)
async def test_a_faulty_prompt_is_refused_with_the_node_and_input(
    client: Client, change: dict[str, Any], kind: str, node_id: str
) -> None:
    prompt = ask_prompt()
    inputs = prompt["3"]["inputs"] | change
    prompt["3"]["inputs"] = {name: value for name, value in inputs.items() if value is not None}
    answer = await client.post("/api/prompt", {"prompt": prompt}, status=400)
    assert answer["error"]["type"] == "prompt_outputs_failed_validation"
    (error,) = answer["node_errors"][node_id]["errors"]
    assert error["type"] == kind
    assert answer["node_errors"][node_id]["class_type"] == "TOPSAsk"


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ({}, "no_prompt"),
        ({"prompt": [1]}, "invalid_prompt"),
        ({"prompt": {"1": {"class_type": "LoadImage", "inputs": []}}}, "invalid_prompt"),
        ({"prompt": {"1": node("KSampler")}}, "missing_node_type"),
        ({"prompt": {"1": node("PrimitiveInt", value=1)}}, "prompt_no_outputs"),
        ({"prompt": {"1": node("PreviewAny", source="x")}, "prompt_id": "no uuid"}, "invalid_prompt_id"),
    ],
)
async def test_what_is_no_prompt_is_refused(client: Client, body: Any, kind: str) -> None:
    answer = await client.post("/api/prompt", body, status=400)
    assert answer["error"]["type"] == kind
    if kind == "missing_node_type":
        assert "needs ComfyUI" in answer["error"]["message"]


async def test_a_body_that_is_not_json_is_refused(client: Client) -> None:
    async with client.session.post("/api/prompt", data=b"{nonsense") as response:
        assert response.status == 400
        assert "not JSON" in await response.text()


async def test_a_failing_node_is_told_and_the_next_prompt_runs(client: Client, studio: Studio) -> None:
    await client.connect()
    (studio.folders.input / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    prompt = {"1": node("LoadImage", image="bad.png"), "2": node("PreviewImage", images=["1", 0])}
    job_id = await client.queue(prompt)
    error = next(data for kind, data in await client.messages_of(job_id) if kind == "execution_error")
    assert (error["node_id"], error["node_type"]) == ("1", "LoadImage")
    assert "bad.png is not a picture" in error["exception_message"]
    assert (await client.get(f"/api/history/{job_id}"))[job_id]["status"]["status_str"] == "error"
    fine = await client.run({"1": node("PreviewAny", source="fine")})
    assert fine["outputs"] == {"1": {"text": ["fine"]}}


async def test_an_interruption_stops_within_a_token(client: Client, studio: Studio, picture: Picture) -> None:
    await client.connect()
    assert client.socket is not None
    save_clip(studio.folders.input / "long.webp", picture)
    job_id = await client.queue(caption_prompt("long.webp"))
    waiting = await client.queue(ask_prompt("Another?"))
    progress = None
    while progress is None:
        message = await client.socket.receive(timeout=60)
        told = json.loads(message.data) if isinstance(message.data, str) else {"type": "text"}
        progress = told["data"] if told["type"] == "progress" else None
    await client.post("/api/interrupt", {"prompt_id": "00000000-0000-0000-0000-000000000000"})
    await client.post("/api/queue", {"delete": [waiting]})
    began = time.monotonic()
    await client.post("/api/interrupt")
    messages = await client.messages_of(job_id)
    assert time.monotonic() - began < 10
    assert messages[-2][0] == "execution_interrupted"
    assert messages[-2][1]["node_id"] == "3"
    statuses = {job["id"]: job["status"] for job in (await client.get("/api/jobs"))["jobs"]}
    assert statuses == {waiting: "cancelled", job_id: "cancelled"}
    assert (await client.run(ask_prompt()))["status"]["status_str"] == "success"


async def test_a_job_that_is_just_ending_is_listed_once(
    client: Client, studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    save, saved, go_on = studio.store.save_job, threading.Event(), threading.Event()

    def save_and_wait(job: dict[str, Any]) -> None:
        save(job)
        saved.set()
        go_on.wait(30)

    monkeypatch.setattr(studio.store, "save_job", save_and_wait)
    await client.connect()
    job_id = await client.queue({"1": node("PreviewAny", source="text")})
    try:
        assert await asyncio.to_thread(saved.wait, 30)
        listed = await client.get("/api/jobs")
        assert [job["id"] for job in listed["jobs"]] == [job_id]
        assert listed["pagination"]["total"] == 1
    finally:
        go_on.set()
    await client.messages_of(job_id)
    assert [job["id"] for job in (await client.get("/api/jobs"))["jobs"]] == [job_id]


async def test_pictures_are_uploaded_once_and_numbered_when_they_differ(
    client: Client, studio: Studio, picture: Picture
) -> None:
    one, other = png(picture(8, 8, 1)), png(picture(8, 8, 2))
    assert await upload(client, one, "a.png") == (200, {"name": "a.png", "subfolder": "", "type": "input"})
    assert (await upload(client, one, "a.png"))[1]["name"] == "a.png"
    assert (await upload(client, other, "a.png"))[1]["name"] == "a (1).png"
    assert (await upload(client, other, "a.png", overwrite="true"))[1]["name"] == "a.png"
    assert (studio.folders.input / "a.png").read_bytes() == other
    assert (await upload(client, one, "p.png", subfolder="pasted"))[1]["subfolder"] == "pasted"
    assert "p.png" not in await client.get("/internal/files/input")
    assert "a.png" in await client.get("/internal/files/input")


@pytest.mark.parametrize(
    ("name", "fields", "content"),
    [
        ("a.png", {}, b"no picture"),
        ("a.html", {}, b"<script>"),
        ("a.svg", {}, b"<svg/>"),
        ("a.png", {"subfolder": "../../x"}, None),
        ("a.png", {"subfolder": "/etc"}, None),
        ("a.png", {"type": "models"}, None),
        ("", {}, None),
    ],
)
async def test_bad_uploads_are_refused_and_leave_nothing(
    client: Client, studio: Studio, picture: Picture, name: str, fields: dict[str, str], content: bytes | None
) -> None:
    before = sorted(studio.base.rglob("*"))
    status, text = await upload(client, content if content is not None else png(picture(4, 4)), name, **fields)
    assert status == 400, text
    assert sorted(studio.base.rglob("*")) == before


async def test_pictures_go_through_the_engines_reader(client: Client, studio: Studio, picture: Picture) -> None:
    eps, deep = io.BytesIO(), io.BytesIO()
    picture(8, 4).save(eps, "EPS")
    status, text = await upload(client, eps.getvalue(), "a.png")
    assert status == 400
    assert "not a picture in a known format" in text
    (studio.folders.input / "b.png").write_bytes(eps.getvalue())
    query = {"filename": "b.png", "type": "input", "preview": "webp"}
    async with client.session.get("/api/view", params=query) as response:
        assert response.status == 400
    # Browsers do not show TIFF, and Pillow alone would show all of it white.
    Image.new("I;16", (4, 4), 128 * 257).save(deep, "TIFF")
    assert (await upload(client, deep.getvalue(), "deep.tif"))[0] == 200
    async with client.session.get("/api/view", params={"filename": "deep.tif", "type": "input"}) as response:
        assert response.headers["Content-Type"] == "image/png"
        assert Image.open(io.BytesIO(await response.read())).convert("L").getextrema() == (128, 128)


@pytest.mark.parametrize("length", [240, 250, 255])
async def test_a_file_name_may_be_as_long_as_the_file_system_takes(
    client: Client, studio: Studio, picture: Picture, length: int
) -> None:
    name = "n" * (length - 4) + ".png"
    for number in range(2):
        status, _ = await upload(client, png(picture(4, 4, number)), name)
        # The second one needs room for its number.
        assert status == (200 if number == 0 or length + 4 <= 255 else 400)
    assert (studio.folders.input / name).is_file()
    assert (await upload(client, png(picture(4, 4)), "n" + name if length == 255 else name))[0] == (
        400 if length == 255 else 200
    )


async def test_a_picture_that_would_fill_the_memory_is_refused(client: Client) -> None:
    status, text = await upload(client, _bomb(40_000), "bomb.png")
    assert status == 400
    assert "bomb.png" in text


def _bomb(side: int) -> bytes:
    """A black PNG of ``side`` squared pixels, written without holding them."""
    row = zlib.compressobj(9)
    data = b"".join(row.compress(bytes(1 + side // 8)) for _ in range(side)) + row.flush()
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", data), (b"IEND", b"")]
    packed = [
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


@pytest.mark.parametrize(
    "query",
    [
        {"filename": "../studio.db", "type": "output"},
        {"filename": "../../studio.db", "type": "input", "subfolder": "x/.."},
        {"filename": "/etc/passwd", "type": "input"},
        {"filename": "studio.db", "type": "base"},
        {"filename": "x.png", "type": "input", "subfolder": "../../.."},
        {"filename": "a\x00.png", "type": "input"},
    ],
)
async def test_nothing_outside_the_folders_is_shown(client: Client, query: dict[str, str]) -> None:
    async with client.session.get("/api/view", params=query) as response:
        assert response.status in (400, 404)


async def test_previews_are_small_and_other_files_are_not_shown_in_the_page(
    client: Client, studio: Studio, picture: Picture
) -> None:
    picture(64, 64).save(studio.folders.input / "a.png")
    async with client.session.get(
        "/api/view", params={"filename": "a.png", "type": "input", "preview": "webp;50"}
    ) as got:
        assert got.headers["Content-Type"] == "image/webp"
        assert Image.open(io.BytesIO(await got.read())).size == (64, 64)
    async with client.session.get("/api/view", params={"filename": "a.png", "type": "input", "channel": "a"}) as got:
        assert Image.open(io.BytesIO(await got.read())).mode == "RGBA"
    (studio.folders.output / "page.html").write_text("<script>alert(1)</script>")
    async with client.session.get("/api/view", params={"filename": "page.html"}) as got:
        assert got.headers["Content-Type"] == "application/octet-stream"
        assert got.headers["Content-Disposition"].startswith("attachment")


async def test_workflows_are_saved_renamed_and_deleted(client: Client) -> None:
    base = "/api/userdata/workflows%2Fmine.json"
    async with client.session.post(f"{base}?overwrite=false&full_info=true", data=b'{"nodes": []}') as response:
        told = await response.json()
    assert (told["path"], told["size"]) == ("workflows/mine.json", 13)
    assert (await client.session.post(f"{base}?overwrite=false", data=b"x")).status == 409
    (listed,) = await client.get("/api/userdata?dir=workflows&recurse=true&split=false&full_info=true")
    assert listed["path"] == "mine.json"
    assert await client.get(base) == {"nodes": []}
    assert (await client.session.post(f"{base}/move/workflows%2Fsub%2Fyours.json")).status == 200
    assert (await client.session.get(base)).status == 404
    assert await client.get("/api/userdata?dir=workflows&recurse=true") == ["sub/yours.json"]
    assert (await client.session.delete("/api/userdata/workflows%2Fsub%2Fyours.json")).status == 204
    assert await client.get("/api/userdata?dir=workflows&recurse=true") == []


@pytest.mark.parametrize("name", ["..%2Fstudio.db", "%2Fetc%2Fpasswd", "workflows%2F..%2F..%2Fstudio.db", "."])
async def test_users_files_stay_in_their_folder(client: Client, name: str) -> None:
    for method in ("get", "post", "delete"):
        response = await getattr(client.session, method)(f"/api/userdata/{name}")
        assert response.status in (400, 404, 405), (method, name)


async def test_settings_and_history_survive_a_restart(studio: Studio, client: Client) -> None:
    await client.connect()
    await client.post("/api/settings/Comfy.Locale", "en")
    await client.post("/api/settings", {"A": {"b": [1, "é"]}})
    job_id = await client.queue({"1": node("PreviewAny", source="kept")})
    await client.messages_of(job_id)
    again = Studio.open(studio.base)
    settings = again.store.settings()
    assert (settings["Comfy.Locale"], settings["A"]) == ("en", {"b": [1, "é"]})
    job = again.store.job(job_id)
    assert job is not None
    assert job["outputs"] == {"1": {"text": ["kept"]}}
    again.store.close()


async def test_only_pages_of_this_machine_get_in(client: Client) -> None:
    for headers, status in [
        ({"Host": "evil.example"}, 403),
        ({"Host": "evil.example:8189"}, 403),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Host": "localhost:8189", "Origin": "http://localhost:8189"}, 200),
        ({"Host": "[::1]:8189"}, 200),
    ]:
        async with client.session.get("/api/users", headers=headers) as response:
            assert response.status == status, headers


async def test_200_prompts_at_once_and_20_clients_lose_nothing(client: Client) -> None:
    clients = [Client(client.session) for _ in range(20)]
    for one in clients:
        await one.connect()
    vanished = clients.pop()
    job_ids: dict[str, Client] = {}
    for number in range(200):
        owner = clients[number % len(clients)]
        job_ids[await owner.queue({"1": node("PreviewAny", source=f"number {number}")})] = owner
    assert vanished.socket is not None
    await vanished.socket.close()
    endings = {
        job_id: await asyncio.wait_for(_ending(owner, job_id), 60) for job_id, owner in list(job_ids.items())[-19:]
    }
    assert set(endings.values()) == {"execution_success"}
    done = await client.get("/api/jobs?status=completed&limit=500")
    assert {job["id"] for job in done["jobs"]} == set(job_ids)
    texts = [job["preview_output"]["content"] for job in reversed(done["jobs"])]
    assert texts == [f"number {number}" for number in range(200)], "first come, first served"


async def _ending(owner: Client, job_id: str) -> str:
    messages = await owner.messages_of(job_id)
    return messages[-2][0]


async def test_memory_is_given_back_between_prompts(client: Client) -> None:
    await client.connect()
    await client.run(ask_prompt())
    await client.post("/api/free", {"unload_models": True, "free_memory": True})
    job_id = await client.queue(ask_prompt())
    messages = await client.messages_of(job_id)
    assert next(data["nodes"] for kind, data in messages if kind == "execution_cached") == []
    assert messages[-2][0] == "execution_success"
