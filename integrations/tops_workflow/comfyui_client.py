"""Run prompts in a ComfyUI, over its HTTP interface and websocket."""

import itertools
import json
import secrets
import struct
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from pathlib import Path
from typing import Any

from tops_engine.errors import InvalidInput, MissingDependency, TopsError, quote
from tops_workflow.definitions import Definition
from tops_workflow.faults import Checked, Fault, NodeFaults
from tops_workflow.formats import Graph, InvalidWorkflow, Prompt
from tops_workflow.host import Interrupted
from tops_workflow.runner import Listener, RunReport

#: The type of the websocket's binary messages that carry live text.
TEXT_EVENT = 3

#: The last messages of a prompt.
ENDS = ("execution_success", "execution_error", "execution_interrupted")

#: Seconds: for one request; between checks whether a run has ended without a message; for its record to appear.
REQUEST, LISTEN, RECORD = 30.0, 5.0, 10.0


class Conflict(TopsError):
    """ComfyUI has a file of this name already."""


class ComfyUIClient:
    """A running ComfyUI (or TOPS Studio).

    Parameters
    ----------
    url : where it listens, such as ``http://127.0.0.1:8188``.

    Raises
    ------
    InvalidInput
        If ``url`` is not an HTTP address.
    TopsError
        If no ComfyUI answers there.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        if not self.url.startswith(("http://", "https://")):
            raise InvalidInput(f"{quote(url)} is not the address of a ComfyUI, such as http://127.0.0.1:8188.")
        self._client = uuid.uuid4().hex
        self.version = str(self._get("/system_stats").get("system", {}).get("comfyui_version", "unknown"))

    def definitions(self) -> dict[str, Definition]:
        """Return the definitions of all its nodes."""
        known: dict[str, Definition] = self._get("/object_info")
        return known

    def upload(self, path: Path) -> str:
        """Upload a picture to its input folder; return the name of the picture there."""
        boundary = secrets.token_hex(16)
        name = path.name.replace('"', "%22")
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="{name}"\r\n\r\n'
        body = head.encode() + path.read_bytes() + f"\r\n--{boundary}--\r\n".encode()
        answer = self._request("/upload/image", body, f"multipart/form-data; boundary={boundary}")
        return "/".join(part for part in (answer.get("subfolder"), answer["name"]) if part)

    def save_workflow(self, name: str, graph: Graph) -> str:
        """Save a graph among its workflows; one of the same name gets a number. Return the name there."""
        for number in itertools.count(1):
            saved = name if number == 1 else f"{name} ({number})"
            path = urllib.parse.quote(f"workflows/{saved}.json", safe="")
            if self._saves(f"/userdata/{path}?overwrite=false", json.dumps(graph).encode()):
                break
        return saved

    def _saves(self, path: str, body: bytes) -> bool:
        """Return whether the file is saved; False if there is one of this name."""
        try:
            self._bytes(path, body, "application/json")
        except Conflict:
            return False
        return True

    def view(self, file: dict[str, str]) -> bytes:
        """Return the bytes of a picture that a node showed."""
        query = urllib.parse.urlencode({key: file[key] for key in ("filename", "subfolder", "type")})
        content: bytes = self._bytes(f"/view?{query}")
        return content

    def interrupt(self) -> None:
        """Stop the run, within one token."""
        self._post("/interrupt", {})

    def run(
        self, prompt: Prompt, extra_pnginfo: dict[str, Any] | None = None, listener: Listener = lambda kind, data: None
    ) -> RunReport:
        """Queue a prompt and follow it to its end.

        Parameters
        ----------
        listener : receives the websocket's messages; live text as ``text`` {node, text}.

        Raises
        ------
        InvalidWorkflow
            If ComfyUI refuses the prompt; the message lists all faults.
        TopsError
            If a node fails.
        Interrupted
            If the run was stopped.
        """
        try:
            from websockets.exceptions import ConnectionClosed
            from websockets.sync.client import connect
        except ImportError as error:
            raise MissingDependency(
                "Running in ComfyUI needs websockets: pip install 'tops-engine[comfyui]'."
            ) from error
        address = f"ws{self.url.removeprefix('http')}/ws?clientId={self._client}"
        body = {"prompt": prompt, "client_id": self._client, "extra_data": {"extra_pnginfo": extra_pnginfo or {}}}
        # A configured proxy is for other addresses, not for this one.
        with connect(address, max_size=None, open_timeout=REQUEST, proxy=None) as socket:
            answer = self._post("/prompt", body)
            if "prompt_id" not in answer:
                raise InvalidWorkflow("\n".join(["ComfyUI refuses the workflow.", *_refusal(answer).lines()]))
            try:
                self._follow(socket, answer["prompt_id"], listener)
            except ConnectionClosed:
                raise TopsError(f"ComfyUI at {self.url} closed the connection during the run.") from None
            except KeyboardInterrupt:
                self.interrupt()
                raise
        return self._report(answer["prompt_id"], prompt)

    def _follow(self, socket: Any, prompt_id: str, listener: Listener) -> None:
        """Pass on messages until the run has ended; the history shows an end whose message was lost."""
        while True:
            try:
                kind, data = _read(socket.recv(timeout=LISTEN))
            except TimeoutError:
                if prompt_id in self._get(f"/history/{prompt_id}"):
                    return
                continue
            if kind is None or data.get("prompt_id", prompt_id) != prompt_id:
                continue
            finished = kind in ENDS or (kind == "executing" and data.get("node") is None)
            if finished:
                return
            listener(kind, data)

    def _report(self, prompt_id: str, prompt: Prompt) -> RunReport:
        deadline = time.monotonic() + RECORD
        while not (entry := self._get(f"/history/{prompt_id}").get(prompt_id)):
            if time.monotonic() > deadline:
                raise TopsError(f"ComfyUI at {self.url} has no record of the run {prompt_id}.")
            time.sleep(0.1)
        messages = dict(entry["status"].get("messages", []))
        if "execution_interrupted" in messages:
            raise Interrupted
        if "execution_error" in messages:
            error = messages["execution_error"]
            text = str(error.get("exception_message", "it failed without a message")).strip()
            raise TopsError(f"{error['node_type']} (node {error['node_id']}): {text}")
        cached = messages.get("execution_cached", {}).get("nodes", [])
        return RunReport(ui=entry["outputs"], cached=[node_id for node_id in cached if node_id in prompt])

    def _get(self, path: str) -> Any:
        return self._request(path)

    def _post(self, path: str, body: dict[str, Any]) -> Any:
        return self._request(path, json.dumps(body).encode(), "application/json")

    def _request(self, path: str, body: bytes | None = None, kind: str = "") -> Any:
        content = self._bytes(path, body, kind)
        try:
            return json.loads(content) if content else {}
        except ValueError:
            raise TopsError(f"The server at {self.url} is not a ComfyUI: {path} returned no JSON.") from None

    def _bytes(self, path: str, body: bytes | None = None, kind: str = "") -> Any:
        headers = {"Content-Type": kind} if body is not None else {}
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(urllib.request.Request(self.url + path, body, headers), timeout=REQUEST) as answer:
                return answer.read()
        except urllib.error.HTTPError as error:
            if error.code == 409:
                raise Conflict(f"ComfyUI at {self.url} has {path} already.") from None
            if error.code == 400:  # a refusal, whose body says why
                return error.read()
            raise TopsError(f"ComfyUI at {self.url} answered {path} with {error.code} {error.reason}.") from None
        except OSError as error:
            reason = getattr(error, "reason", error)
            raise TopsError(f"No ComfyUI answers at {self.url}: {reason}.") from None


def _read(message: str | bytes) -> tuple[str | None, dict[str, Any]]:
    """Return a websocket message's type and data; the type is None for binary messages other than text."""
    if isinstance(message, str):
        read = json.loads(message)
        return read["type"], read.get("data") or {}
    (kind,) = struct.unpack(">I", message[:4])
    if kind != TEXT_EVENT:
        return None, {}
    (length,) = struct.unpack(">I", message[4:8])
    return "text", {"node": message[8 : 8 + length].decode(), "text": message[8 + length :].decode(errors="replace")}


def _refusal(answer: dict[str, Any]) -> Checked:
    """Convert ComfyUI's answer to a refused prompt to the form of the embedded check."""
    nodes = {
        node_id: NodeFaults(entry["class_type"], [_fault(error) for error in entry["errors"]])
        for node_id, entry in (answer.get("node_errors") or {}).items()
    }
    return Checked([], _fault(answer.get("error") or {}), nodes)


def _fault(error: dict[str, Any]) -> Fault:
    return Fault(error.get("type", ""), error.get("message", "It gives no reason."), error.get("details") or "")
