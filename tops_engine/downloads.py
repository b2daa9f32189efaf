"""Download checkpoints of the hub: size first, with progress, interruptible at once, continued where it stopped."""

import json
import queue
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from huggingface_hub import constants

from tops_engine import hub_files
from tops_engine.checkpoints import checkpoint_source
from tops_engine.errors import ModelNotFound, quote, reason_of
from tops_engine.hub_files import PART, Wanted
from tops_engine.loading import check_supported
from tops_engine.progress import Progress
from tops_engine.settings import ModelSpec

#: Seconds between two calls of the progress, so that an interruption is noticed.
INTERVAL = 0.1

#: A hidden folder beside the checkpoints for those that are not complete yet.
UNFINISHED = ".tops_downloads"


def fetch(spec: ModelSpec, progress: Progress, models: Path | None = None) -> Path:
    """Return the folder of a checkpoint, downloaded if need be.

    Of a checkpoint that no family runs only the small files are downloaded.

    Parameters
    ----------
    progress : gets bytes that are there and bytes of all; called several times a second from the first request on,
        with a total of 0 until the size is known. An exception that it raises ends the download at once, and the next
        call continues it.
    models : where the folder ``owner/name`` of the checkpoint is made; None is the hub's cache.

    Raises
    ------
    ModelNotFound
        If there is no such checkpoint, the hub cannot be reached, or the download fails, also for lack of room.
    UnsupportedModel, MissingDependency
        As :func:`tops_engine.loading.load_family`.
    """
    source = checkpoint_source(spec.model, spec.revision, lambda: progress(0, 0))
    if source != spec.model or Path(source).is_dir():
        return Path(source)
    target = None if models is None else models / spec.model
    unfinished = None if models is None else models / UNFINISHED / spec.model.replace("/", "--")
    check_supported(spec, str(_download(spec, unfinished, progress, weights=False)))
    folder = _download(spec, unfinished, progress, weights=True)
    return folder if target is None else _finish(folder, target)


def _download(spec: ModelSpec, folder: Path | None, progress: Progress, weights: bool) -> Path:
    where = None if folder is None else str(folder)
    wanted = Wanted(spec.model, spec.revision, constants.ENDPOINT, constants.HF_HUB_CACHE, where, weights)
    done = total = 0
    with _running(wanted) as messages:
        while True:
            try:
                message = messages.get(timeout=INTERVAL)
            except queue.Empty:
                message = {}
            if "folder" in message:
                return Path(message["folder"])
            if "error" in message:
                raise _failure(spec.model, message["error"], message["reason"])
            done, total = message.get("done", done), message.get("total", total)
            progress(*((done, total) if weights else (0, 0)))


@contextmanager
def _running(wanted: Wanted) -> Iterator["queue.Queue[dict[str, Any]]"]:
    """Yield what a download in a process of its own says; the process ends with the block."""
    # -P: the folder of that file must not come before the standard library.
    process = subprocess.Popen(
        [sys.executable, "-P", hub_files.__file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        encoding="utf-8",
    )
    assert process.stdin is not None
    assert process.stdout is not None
    messages: queue.Queue[dict[str, Any]] = queue.Queue()
    try:
        process.stdin.write(wanted.to_json() + "\n")
        process.stdin.flush()
        threading.Thread(target=_listen, args=(process.stdout, messages), daemon=True).start()
        yield messages
    finally:
        process.kill()
        process.wait()


def _listen(lines: IO[str], messages: "queue.Queue[dict[str, Any]]") -> None:
    for line in lines:
        messages.put(json.loads(line))
    messages.put({"error": "failed", "reason": "its process ended"})


def _finish(folder: Path, target: Path) -> Path:
    """Move a complete download to its place; config.json, which makes it a checkpoint, goes last."""
    target.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(folder / ".cache", ignore_errors=True)  # notes of the hub's client
    for path in sorted(folder.iterdir(), key=lambda path: path.name == "config.json"):
        if path.suffix != PART:
            shutil.move(path, target / path.name)
    shutil.rmtree(folder, ignore_errors=True)
    return target


def _failure(name: str, kind: str, reason: str) -> ModelNotFound:
    title = f"The checkpoint {quote(name)}"
    if kind == "gated":
        return ModelNotFound(
            f"{title} is given only to those who accept its terms: do that at {constants.ENDPOINT}/{name}, make an "
            "access token there, and start this program with it in the environment variable HF_TOKEN."
        )
    if kind == "missing":
        return ModelNotFound(
            f"{title} is not on the hub {constants.ENDPOINT}, or is private; check the name, or give an access token "
            "in the environment variable HF_TOKEN."
        )
    return ModelNotFound(f"{title} cannot be downloaded: {reason_of(reason)}. Run it again to continue the download.")
