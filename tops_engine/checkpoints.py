"""Where checkpoints come from: a folder, the hub, or what was downloaded from the hub before."""

import json
import os
import threading
from collections.abc import Callable
from pathlib import Path

from huggingface_hub import constants, get_session, hf_hub_url, is_offline_mode, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError

from tops_engine.errors import ModelNotFound, UnsupportedModel, quote, reason_of

#: Seconds within which the hub has to accept a connection, unless HF_HUB_ETAG_TIMEOUT is set.
CONNECT_SECONDS = 1.5

#: Seconds between two calls of ``on_wait``.
INTERVAL = 0.1


def checkpoint_source(name: str, revision: str | None = None, on_wait: Callable[[], None] = lambda: None) -> str:
    """Return where to load a checkpoint from: a folder or a hub id.

    That is the folder of an earlier download, if it is complete and of the hub's newest commit, or if the hub cannot be
    reached. The hub's own client would try to connect six times in half a minute before it looks there.

    Parameters
    ----------
    on_wait : called several times a second while the hub lets wait; an exception that it raises ends the function.

    Raises
    ------
    UnsupportedModel
        If it is the name of one file of weights.
    ModelNotFound
        If there is no such folder, if the name cannot be a hub id, or if the checkpoint was not downloaded before and
        the hub cannot be reached.
    """
    if refusal := _single_file(name):
        raise UnsupportedModel(refusal)
    path = Path(os.path.expanduser(name))  # unlike Path's, it takes the name of an unknown user
    looks_local = path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1
    if looks_local and not os.path.isdir(path):
        raise ModelNotFound(f"There is no folder {quote(name)}.")
    if looks_local or os.path.isdir(path):
        return str(path)
    try:
        reason, commit = _reach(hf_hub_url(name, "config.json", revision=revision), on_wait)
        downloaded = try_to_load_from_cache(name, "config.json", revision=commit or revision)
    except HFValidationError as error:
        raise ModelNotFound(f"The checkpoint {quote(name)} cannot be found: {reason_of(error)}.") from error
    folder = Path(downloaded).parent if isinstance(downloaded, str) else None
    if reason is None:
        return str(folder) if folder is not None and commit is not None and is_complete(folder) else name
    if folder is None:
        raise ModelNotFound(
            f"The checkpoint {quote(name)} was not downloaded before, and {reason}. The embedded model, 'mini', needs "
            "no download."
        )
    return str(folder)


def downloaded_checkpoint(name: str, revision: str | None = None) -> Path | None:
    """Return the folder of a complete earlier download in the hub's cache, without a request; None if there is none."""
    try:
        config = try_to_load_from_cache(name, "config.json", revision=revision)
    except HFValidationError:
        return None
    return Path(config).parent if isinstance(config, str) and is_complete(Path(config).parent) else None


def is_complete(folder: Path) -> bool:
    """Return whether a checkpoint's folder has config, weights, tokenizer and image processor."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            weights = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (OSError, ValueError, KeyError, AttributeError):
            return False
    else:
        weights = {path.name for path in folder.glob("*.safetensors")}
    tokenizers = ("tokenizer.json", "tokenizer.model", "vocab.json")
    processors = ("preprocessor_config.json", "processor_config.json")
    return (
        bool(weights)
        and all((folder / name).is_file() for name in ("config.json", *weights))
        and any((folder / name).is_file() for name in tokenizers)
        and any((folder / name).is_file() for name in processors)
    )


def is_download(source: str) -> bool:
    """Return whether :func:`checkpoint_source` gave the folder of an earlier download, without reaching the hub."""
    return Path(source).is_relative_to(constants.HF_HUB_CACHE)


def _single_file(name: str) -> str | None:
    """Return why a name of one weight file is no checkpoint; None if it is not the name of one."""
    title = quote(name)
    suffix = "" if Path(name).is_dir() else Path(name).suffix.lower()
    if suffix == ".gguf":
        return (
            f"{title} is a GGUF file, which the engine does not read; name the safetensors checkpoint that it was "
            "made from, by its folder or hub id, with quantization 4bit for as little memory."
        )
    if suffix in (".safetensors", ".ckpt", ".pt", ".pth", ".bin"):
        return (
            f"{title} is a single file of weights; name the folder that holds it together with config.json, tokenizer "
            "and processor, or the hub id."
        )
    return None


def _reach(url: str, on_wait: Callable[[], None]) -> tuple[str | None, str | None]:
    """Return why the hub cannot be reached, or None if it answers a request for ``url``; and the commit that it names.

    The hub's client makes the request, so that proxies and certificates are those of later downloads. A connection has
    to stand after :data:`CONNECT_SECONDS`; an answer may take HF_HUB_ETAG_TIMEOUT (10 s by default).
    """
    if is_offline_mode():
        return "HF_HUB_OFFLINE forbids downloads", None
    request = _Request(url)
    request.start()
    if request.connected_within(_connect_seconds()):
        while request.is_alive():
            on_wait()
            request.join(INTERVAL)
        reason = request.failure
    else:
        reason = f"no connection within {_connect_seconds():g} s; on a slow network set HF_HUB_ETAG_TIMEOUT to more"
    return reason and f"the hub {constants.ENDPOINT} cannot be reached ({reason_of(reason)})", request.commit


def _connect_seconds() -> float:
    return constants.HF_HUB_ETAG_TIMEOUT if "HF_HUB_ETAG_TIMEOUT" in os.environ else CONNECT_SECONDS


class _Request(threading.Thread):
    """One request to the hub, in a thread of its own: looking up a name and connecting cannot be interrupted.

    Attributes
    ----------
    failure : why there was no answer; None if there was one. Valid when the thread has ended.
    commit : which commit the answer names.
    """

    def __init__(self, url: str) -> None:
        super().__init__(daemon=True)
        self._url = url
        self._connecting = False
        self._connected = threading.Event()
        self.failure: str | None = None
        self.commit: str | None = None

    def run(self) -> None:
        try:
            answer = get_session().head(
                self._url,
                timeout=constants.HF_HUB_ETAG_TIMEOUT,
                follow_redirects=False,
                extensions={"trace": self._trace},
            )
            self.commit = answer.headers.get("X-Repo-Commit")
        except Exception as error:  # releases of huggingface_hub take their errors from different HTTP packages
            self.failure = str(error) or type(error).__name__
        self._connected.set()

    def connected_within(self, seconds: float) -> bool:
        """Wait for a connection or the end of the request, and return whether there is one.

        A client that reports no steps, as for a connection that it used before, counts as connected.
        """
        return self._connected.wait(seconds) or not self._connecting

    def _trace(self, step: str, _details: object) -> None:
        """Follow the steps of a request, as httpx's extension ``trace`` reports them."""
        if step == "connection.connect_tcp.started":
            self._connecting = True
        elif step == "connection.connect_tcp.complete":
            self._connected.set()
