"""Download a checkpoint's files from the hub. This module runs as a program of its own, which can be ended at any time.

It reads one line of JSON from stdin (:class:`Wanted`) and writes lines of JSON: ``{"total": bytes}``, several times a
second ``{"done": bytes}``, and at the end ``{"folder": path}`` or ``{"error": kind, "reason": text}``. It imports
nothing of the engine, so that it starts quickly.
"""

import importlib
import json
import os
import re
import shutil
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

#: Bytes that are read at a time.
CHUNK = 2**16

#: Seconds between two reports.
INTERVAL = 0.1

#: Seconds within which the hub has to list the files.
LIST_SECONDS = 30.0

#: Seconds without any byte after which a connection is given up, between two attempts, and attempts without progress.
READ_SECONDS, PAUSE, ATTEMPTS = 15.0, 1.0, 5

WEIGHTS = ".safetensors"

#: Ending of a part of a file of weights.
PART = ".part"

#: Endings of the files that configs, tokenizers, processors and chat templates consist of.
SMALL = (".json", ".jinja", ".txt", ".model")


@dataclass(frozen=True)
class Wanted:
    """What to download.

    Attributes
    ----------
    name, revision : of the checkpoint.
    endpoint, cache : of the hub: its address, and the folder of its cache.
    folder : where the files go; None for the cache.
    weights : also the weights, which are nearly all of the size.
    """

    name: str
    revision: str | None
    endpoint: str
    cache: str
    folder: str | None
    weights: bool

    def to_json(self) -> str:
        return json.dumps(asdict(self))


def files_to_read(names: list[str], weights: bool) -> list[str]:
    """Return the files that the engine reads, small ones first: no pickled weights, no second format of the weights."""
    top = [name for name in names if "/" not in name or name.startswith("additional_chat_templates/")]
    small = [name for name in top if name.endswith(SMALL) and not name.endswith(f"{WEIGHTS}.index.json")]
    if not weights:
        return small
    index = [name for name in top if name == f"model{WEIGHTS}.index.json"]
    files = [name for name in top if name.endswith(WEIGHTS)]
    if f"model{WEIGHTS}" in files:
        return [*small, f"model{WEIGHTS}"]
    parts = [name for name in files if re.fullmatch(r"model-\d+-of-\d+" + re.escape(WEIGHTS), name)]
    return [*small, *index, *(parts or [name for name in files if not name.startswith("consolidated")])]


def main() -> None:
    wanted = Wanted(**json.loads(sys.stdin.readline()))
    os.environ |= {"HF_ENDPOINT": wanted.endpoint, "HF_HUB_CACHE": wanted.cache}
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        _say(folder=str(_download(wanted)))
    except GatedRepoError as error:  # a kind of RepositoryNotFoundError
        _say(error="gated", reason=str(error))
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        _say(error="missing", reason=str(error))
    except BrokenPipeError:  # nobody listens any more
        os._exit(1)
    except Exception as error:  # releases of huggingface_hub take their errors from different HTTP packages
        _say(error="failed", reason=str(error) or type(error).__name__)


def _download(wanted: Wanted) -> Path:
    from huggingface_hub import HfApi, hf_hub_download

    info = HfApi().model_info(wanted.name, revision=wanted.revision, files_metadata=True, timeout=LIST_SECONDS)
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or ()}
    names = files_to_read(list(sizes), wanted.weights)
    if wanted.weights and not any(name.endswith(WEIGHTS) for name in names):
        raise OSError("it has no safetensors files; pickled weights (.bin) and GGUF are not read")
    _say(total=sum(sizes[name] for name in names))
    done, path = 0, ""
    for name in names:
        if name.endswith(WEIGHTS):
            _download_weights(wanted, name, sizes[name], done)
        if not (wanted.folder and name.endswith(WEIGHTS)):
            # It finds the weights in the cache and links them.
            path = hf_hub_download(
                wanted.name, name, revision=wanted.revision, local_dir=wanted.folder, cache_dir=wanted.cache
            )
        done += sizes[name]
        _say(done=done)
    return Path(wanted.folder or Path(path).parent)


def _download_weights(wanted: Wanted, name: str, size: int, before: int) -> None:
    """Download one file of weights; ``before`` are the bytes of other files.

    The hub's client begins a file again when its process was ended; this continues a part of the same content.
    """
    url, target, part = _places(wanted, name)
    if target.is_file():
        return
    part.parent.mkdir(parents=True, exist_ok=True)
    there = part.stat().st_size if part.is_file() else 0
    free = shutil.disk_usage(part.parent).free
    if free < size - there:
        left = f"{(size - there) / 1e9:.1f} GB"
        raise OSError(f"{name} needs {left} more and {target.parent} has {free / 1e9:.1f} GB free")
    attempts = 0
    while there < size:
        failure: Exception = OSError("the connection ended early")
        try:
            _continue(url, part, there, before)
        except OSError as error:
            failure = error
        except _connection_errors() as error:
            failure = error
        now = part.stat().st_size if part.is_file() else 0
        attempts = attempts + 1 if now <= there else 0
        if attempts == ATTEMPTS:
            raise failure
        there = now
        if there < size:
            time.sleep(PAUSE)
    if there > size:
        part.unlink()
        raise OSError(f"{name} was sent with {there} bytes in place of {size}")
    part.replace(target)


def _places(wanted: Wanted, name: str) -> tuple[str, Path, Path]:
    """Return the address of a file, where it goes, and where a part of the same content lies until it is complete."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.file_download import repo_folder_name

    url = hf_hub_url(wanted.name, name, revision=wanted.revision)
    etag = get_hf_file_metadata(url).etag or "unknown"
    blobs = Path(wanted.cache) / repo_folder_name(repo_id=wanted.name, repo_type="model") / "blobs"
    target = Path(wanted.folder) / name if wanted.folder else blobs / etag
    return url, target, target.with_name(f"{etag}{PART}")


def _continue(url: str, part: Path, there: int, before: int) -> None:
    """Ask for what is missing of a file, and append it."""
    from huggingface_hub import get_session, get_token

    headers = {"Range": f"bytes={there}-", "Accept-Encoding": "identity"}
    if token := get_token():
        headers["Authorization"] = f"Bearer {token}"
    options: dict[str, Any] = {"headers": headers, "timeout": READ_SECONDS, "follow_redirects": True}
    with get_session().stream("GET", url, **options) as answer, part.open("ab") as file:
        answer.raise_for_status()
        if answer.status_code == 200:  # the whole file
            there = file.truncate(0)
        said = 0.0
        for chunk in answer.iter_raw(CHUNK):
            there += file.write(chunk)
            if time.monotonic() - said > INTERVAL:
                _say(done=before + there)
                said = time.monotonic()


def _connection_errors() -> tuple[type[Exception], ...]:
    """Return the base class of the errors of the hub's client, whose HTTP package differs between its releases."""
    from huggingface_hub import get_session

    package = importlib.import_module(type(get_session()).__module__.partition(".")[0])
    return (package.HTTPError, package.StreamError)


def _say(**message: Any) -> None:
    print(json.dumps(message), flush=True)


if __name__ == "__main__":
    main()
