"""Send the same requests to TOPS Studio and to a real ComfyUI, and compare what clients rely on."""

import asyncio
import io
import json
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.comfyui.conftest import Server
from tests.integrations.tops_studio.conftest import ServerProcess, ask_prompt, node

Answer = tuple[int, Any]


class Host:
    """A client of TOPS Studio or ComfyUI."""

    def __init__(self, url: str) -> None:
        self.url = url

    def send(self, method: str, path: str, body: bytes | None = None, kind: str = "application/json") -> Answer:
        request = urllib.request.Request(self.url + path, data=body, method=method, headers={"Content-Type": kind})
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return response.status, _read(response.read())
        except urllib.error.HTTPError as error:
            return error.code, _read(error.read())

    def run(self, prompt: Any) -> Any:
        """Queue a workflow, wait for its end and return the history entry."""
        _, told = self.send("POST", "/api/prompt", json.dumps({"prompt": prompt}).encode())
        for _ in range(600):
            _, history = self.send("GET", f"/api/history/{told['prompt_id']}")
            if history:
                return history[told["prompt_id"]]
            asyncio.run(asyncio.sleep(0.1))
        raise AssertionError("the run does not end")


def _read(content: bytes) -> Any:
    try:
        return json.loads(content)
    except ValueError:
        return content


@pytest.fixture(scope="module")
def hosts(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Host, Host]]:
    process = ServerProcess(tmp_path_factory.mktemp("studio"), "--model", "")
    real = Host(server.url)
    real.send("POST", "/api/history", b'{"clear": true}')  # remove the entries of earlier tests
    yield Host(process.url), real
    process.stop()


def lacking(ours: Any, theirs: Any, where: str = "") -> list[str]:
    """Return keys that our answer lacks or has with another type than ComfyUI's; compare lists by their first item."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        found = [f"{where}.{key}" for key in theirs if key not in ours]
        return found + [
            line for key in theirs if key in ours for line in lacking(ours[key], theirs[key], f"{where}.{key}")
        ]
    if isinstance(theirs, list) and isinstance(ours, list):
        return lacking(ours[0], theirs[0], f"{where}[]") if ours and theirs else []
    number = (int, float)
    same = type(ours) is type(theirs) or (isinstance(ours, number) and isinstance(theirs, number))
    return [] if same or None in (ours, theirs) else [f"{where}: {type(ours).__name__} for {type(theirs).__name__}"]


@pytest.mark.parametrize(
    "path",
    [
        "users",
        "system_stats",
        "queue",
        "prompt",
        "object_info/TOPSAsk",
        "object_info/LoadImage",
        "object_info/None",
        "embeddings",
        "history",
    ],
)
def test_answers_have_everything_the_real_ones_have(hosts: tuple[Host, Host], path: str) -> None:
    (status, ours), (their_status, theirs) = (host.send("GET", f"/api/{path}") for host in hosts)
    assert status == their_status == 200
    if path.startswith("object_info"):
        theirs = {node_id: described(definition) for node_id, definition in theirs.items()}
    assert lacking(ours, theirs) == []


def described(definition: Any) -> Any:
    """Return what a definition says, in the form of a V1 node: V3 adds empty fields and names the type of a list."""
    inputs = {
        group: {
            name: [spec[1]["options"], *spec[1:]] if spec[0] == "COMBO" and "options" in spec[1] else spec
            for name, spec in some.items()
            if "." not in name  # a core without V3 lists the inputs of a group one by one
        }
        for group, some in definition["input"].items()
        if group != "hidden"  # the server fills these in
    }
    order = {group: names for group, names in definition["input_order"].items() if group != "hidden"}
    return {key: value for key, value in definition.items() if value} | {"input": inputs, "input_order": order}


FAULTY: dict[str, Any] = {
    "too small": {"max_tokens": 0},
    "no number": {"max_tokens": "many"},
    "not in the list": {},
    # A picture without a text is a question.
    "judged by the node": {"prompt": "  ", "image": None},
    "no such node": {"model": ["99", 0]},
    "another type": {"model": ["1", 0]},
}


@pytest.mark.parametrize("name", FAULTY)
def test_faulty_prompts_are_refused_alike(hosts: tuple[Host, Host], name: str) -> None:
    prompt = ask_prompt()
    changed = prompt["3"]["inputs"] | FAULTY[name]
    prompt["3"]["inputs"] = {key: value for key, value in changed.items() if value is not None}
    if name == "not in the list":
        prompt["2"]["inputs"]["dtype"] = "float7"
    body = json.dumps({"prompt": prompt}).encode()
    (status, ours), (their_status, theirs) = (host.send("POST", "/api/prompt", body) for host in hosts)
    assert status == their_status == 400
    assert ours["error"]["type"] == theirs["error"]["type"]
    if name != "no such node":  # ComfyUI itself fails there with a missing key
        kinds = [
            {node_id: [error["type"] for error in entry["errors"]] for node_id, entry in answer["node_errors"].items()}
            for answer in (ours, theirs)
        ]
        # ComfyUI has another name for an exception of a node that another one reads.
        assert kinds[0] == json.loads(json.dumps(kinds[1]).replace("during_inner_validation", "during_validation"))
        raised = [sentences_of_exceptions(answer) for answer in (ours, theirs)]
        assert raised[0] == raised[1]
        assert len(raised[0]) == (name in ("not in the list", "judged by the node"))
        assert lacking(ours["node_errors"], theirs["node_errors"]) == []


def sentences_of_exceptions(answer: Any) -> list[str]:
    """Return the sentences of nodes that raised them, without ComfyUI's traceback, which holds paths of the machine."""
    errors = [error for entry in answer["node_errors"].values() for error in entry["errors"]]
    raised = [error for error in errors if error["type"].startswith("exception")]
    for error in raised:
        del error["extra_info"]
    return [error["details"] for error in raised]


@pytest.mark.parametrize("prompt", [None, {}, {"1": node("PrimitiveInt", value=1)}])
def test_what_cannot_be_a_prompt_is_refused_alike(hosts: tuple[Host, Host], prompt: Any) -> None:
    body = json.dumps({} if prompt is None else {"prompt": prompt}).encode()
    (status, ours), (their_status, theirs) = (host.send("POST", "/api/prompt", body) for host in hosts)
    assert status == their_status == 400
    assert set(theirs) <= set(ours)


def test_a_run_leaves_the_same_history(hosts: tuple[Host, Host]) -> None:
    ours, theirs = (host.run(ask_prompt("What number is written?")) for host in hosts)
    assert ours["status"]["status_str"] == theirs["status"]["status_str"] == "success"
    assert ours["outputs"]["5"] == theirs["outputs"]["5"] == {"text": ["5"]}
    assert set(ours["outputs"]) == set(theirs["outputs"])
    assert [lacking(ours[key], theirs[key], key) for key in ("outputs", "status")] == [[], []]
    assert [type(part) for part in ours["prompt"][1:]] == [type(part) for part in theirs["prompt"][1:]]
    kinds = [[kind for kind, _ in entry["status"]["messages"]] for entry in (ours, theirs)]
    assert kinds[0] == kinds[1]


def test_pictures_go_in_and_out_alike(hosts: tuple[Host, Host]) -> None:
    stream = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(stream, "PNG")
    mark = uuid.uuid4().hex
    head = f'--{mark}\r\nContent-Disposition: form-data; name="image"; filename="red.png"\r\n'
    head += "Content-Type: image/png\r\n\r\n"
    body = head.encode() + stream.getvalue() + f"\r\n--{mark}--\r\n".encode()
    kind = f"multipart/form-data; boundary={mark}"
    answers = [host.send("POST", "/api/upload/image", body, kind) for host in hosts]
    assert answers[0] == answers[1] == (200, {"name": "red.png", "subfolder": "", "type": "input"})
    for query, status in [
        ("filename=red.png&type=input", 200),
        ("filename=none.png&type=input", 404),
        ("filename=..%2Fred.png&type=input", 400),
        ("filename=red.png&type=nowhere", 400),
    ]:
        assert [host.send("GET", f"/api/view?{query}")[0] for host in hosts] == [status, status], query


def test_saved_workflows_are_kept_alike(hosts: tuple[Host, Host]) -> None:
    path = "/api/userdata/workflows%2Fshared.json"
    steps = [
        ("POST", f"{path}?overwrite=false&full_info=true", b'{"nodes": []}'),
        ("POST", f"{path}?overwrite=false", b"x"),
        ("GET", "/api/userdata?dir=workflows&recurse=true&split=false&full_info=true", None),
        ("GET", path, None),
        ("POST", f"{path}/move/workflows%2Fother.json", b""),
        ("GET", path, None),
        ("DELETE", "/api/userdata/workflows%2Fother.json", None),
    ]
    for method, where, body in steps:
        (status, ours), (their_status, theirs) = (host.send(method, where, body) for host in hosts)
        assert status == their_status, (method, where)
        assert status >= 400 or lacking(ours, theirs) == [], (method, where)


def test_folder_names_are_not_left_behind(hosts: tuple[Host, Host], tmp_path: Path) -> None:
    """Check that no answer of TOPS Studio contains a path of the machine."""
    studio, _ = hosts
    for path in ("/api/system_stats", "/api/settings", "/api/object_info", "/api/jobs", "/api/history"):
        _, answer = studio.send("GET", path)
        assert str(Path.home()) not in json.dumps(answer)
