"""Where checkpoints come from: a folder, the hub, or what was downloaded from the hub before."""

import os
import threading
from pathlib import Path

from huggingface_hub import constants, get_session, hf_hub_url, is_offline_mode, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError

from tops_engine.errors import ModelNotFound, UnsupportedModel, quote, reason_of

#: Seconds within which the hub has to accept a connection, unless HF_HUB_ETAG_TIMEOUT is set.
CONNECT_SECONDS = 1.5


def checkpoint_source(name: str, revision: str | None = None) -> str:
    """Return where to load a checkpoint from: a folder or a hub id.

    If the hub cannot be reached, that is the folder of an earlier download. The hub's own client would try to connect
    six times in half a minute before it looks there.

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
        reason = _unreachable(hf_hub_url(name, "config.json", revision=revision))
        downloaded = try_to_load_from_cache(name, "config.json", revision=revision) if reason else None
    except HFValidationError as error:
        raise ModelNotFound(f"The checkpoint {quote(name)} cannot be found: {reason_of(error)}.") from error
    if reason is None:
        return name
    if not isinstance(downloaded, str):
        raise ModelNotFound(
            f"The checkpoint {quote(name)} was not downloaded before, and {reason}. The embedded model, 'mini', needs "
            "no download."
        )
    return str(Path(downloaded).parent)


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
            "made from, by its folder or hub id."
        )
    if suffix in (".safetensors", ".ckpt", ".pt", ".pth", ".bin"):
        return (
            f"{title} is a single file of weights; name the folder that holds it together with config.json, tokenizer "
            "and processor, or the hub id."
        )
    return None


def _unreachable(url: str) -> str | None:
    """Return why the hub cannot be reached, or None if it answers a request for ``url``, whatever the answer.

    The hub's client makes the request, so that proxies and certificates are those of later downloads. A connection has
    to stand after :data:`CONNECT_SECONDS`; an answer may take HF_HUB_ETAG_TIMEOUT (10 s by default).
    """
    if is_offline_mode():
        return "HF_HUB_OFFLINE forbids downloads"
    request = _Request(url)
    request.start()
    if request.connected_within(_connect_seconds()):
        request.join()
        reason = request.failure
    else:
        reason = f"no connection within {_connect_seconds():g} s; on a slow network set HF_HUB_ETAG_TIMEOUT to more"
    return reason and f"the hub {constants.ENDPOINT} cannot be reached ({reason_of(reason)})"


def _connect_seconds() -> float:
    return constants.HF_HUB_ETAG_TIMEOUT if "HF_HUB_ETAG_TIMEOUT" in os.environ else CONNECT_SECONDS


class _Request(threading.Thread):
    """One request to the hub, in a thread of its own: looking up a name and connecting cannot be interrupted.

    Attributes
    ----------
    failure : why there was no answer; None if there was one. Valid when the thread has ended.
    """

    def __init__(self, url: str) -> None:
        super().__init__(daemon=True)
        self._url = url
        self._connecting = False
        self._connected = threading.Event()
        self.failure: str | None = None

    def run(self) -> None:
        try:
            get_session().head(
                self._url,
                timeout=constants.HF_HUB_ETAG_TIMEOUT,
                follow_redirects=False,
                extensions={"trace": self._trace},
            )
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
