"""Encoders on other machines, started by ``tops encode-server``."""

import itertools
import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tops_engine.errors import (
    InvalidImage,
    InvalidInput,
    MissingDependency,
    ServerError,
    TopsError,
    listed,
    shorten,
)
from tops_engine.media.images import ImageSource, image_file
from tops_engine.remote.encoding import EncodedPicture, Served, check_checkpoint
from tops_engine.remote.server import CONNECT_SECONDS, checked_address
from tops_engine.settings import Pruning

if TYPE_CHECKING:
    import httpx

#: What an encoder states first; another number is another form of requests and answers.
FORMAT = "tops encoder 1"

TIMEOUT = 600.0

#: Seconds for which an encoder that failed is asked last.
DOWN_SECONDS = 30.0


class EncoderClient:
    """One encoder, or several of one model and pruning, which share the pictures. Safe to use from several threads.

    A picture goes to the next encoder in turn; if that cannot be reached or fails, to the others.

    Parameters
    ----------
    urls : the addresses of the encoders.
    api_key : the key that they were started with, if they demand one.

    Raises
    ------
    InvalidInput
        If an address is not valid.
    MissingDependency
        If the openai library, whose HTTP client is used, is not installed.
    """

    def __init__(self, urls: Sequence[str], api_key: str | None = None) -> None:
        try:
            import httpx
        except ImportError as error:
            raise MissingDependency("Asking an encoder needs httpx; pip install 'tops-engine[server]'.") from error
        self.urls = [checked_address(url) for url in urls]
        if not self.urls:
            raise InvalidInput("Give the address of an encoder, such as http://host:8100.")
        headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
        timeout = httpx.Timeout(TIMEOUT, connect=CONNECT_SECONDS)
        self._client = httpx.Client(headers=headers, timeout=timeout, follow_redirects=False)
        self._turn = itertools.count()
        self._failed_at: dict[str, float] = {}
        self._lock = threading.Lock()
        self._pruning: Pruning | None = None

    def connect(self, served: Served) -> None:
        """Check that encoders answer, and that they have the model of a server; see :class:`Encoder`."""
        stated: dict[str, dict[str, Any]] = {}
        failures: list[ServerError] = []
        for url in self.urls:
            try:
                stated[url] = self._stated(url)
            except ServerError as error:
                failures.append(error)
        if not stated:
            raise failures[0]
        first, *others = stated.values()
        for other in others:
            if [other[name] for name in ("model", "pruning")] != [first[name] for name in ("model", "pruning")]:
                raise InvalidInput(
                    f"The encoders {listed(stated)} differ in their model or pruning; start all with the same options."
                )
        check_checkpoint(first["model"], served.checkpoint)
        self._pruning = Pruning(**first["pruning"])

    def runs(self, pruning: Pruning | None) -> Pruning:
        """Return the pruning of the encoders; see :class:`Encoder`."""
        own = self._pruning
        if own is None:
            raise InvalidInput("The pruning of the encoders is not known yet; connect to them first.")
        if pruning is None:
            return own
        names_method = bool(pruning.model_fields_set - {"keep"})
        if pruning.keep != own.keep or (names_method and pruning.before_the_llm().resolved() != own.resolved()):
            raise InvalidInput(
                f"The encoders prune by {own.label} and keep {own.budget_text}, as they were started; leave out the "
                "pruning, or start them with other options."
            )
        return own

    def encode(self, picture: ImageSource, pruning: Pruning | None) -> EncodedPicture:
        """Encode and prune a picture; see :class:`Encoder`."""
        data, media_type = image_file(picture)
        failure: ServerError | None = None
        for url in self._in_turn():
            try:
                return _picture(self._ask("POST", url, "encode", content=data, headers={"Content-Type": media_type}))
            except ServerError as error:
                failure = error
                with self._lock:
                    self._failed_at[url] = time.monotonic()
        assert failure is not None
        raise failure

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _in_turn(self) -> list[str]:
        """Return the addresses in the order to try; those that failed lately come last."""
        with self._lock:
            begin = next(self._turn) % len(self.urls)
            failed = dict(self._failed_at)
        urls = self.urls[begin:] + self.urls[:begin]
        now = time.monotonic()
        return sorted(urls, key=lambda url: now - failed.get(url, -DOWN_SECONDS) < DOWN_SECONDS)

    def _stated(self, url: str) -> dict[str, Any]:
        """Return what an encoder states about itself."""
        stated = self._ask("GET", url, "encoder")
        if stated.get("format") != FORMAT or not isinstance(stated.get("pruning"), dict):
            raise ServerError(
                f"{shorten(url)} is no encoder of this version; start one by `tops encode-server` of the same "
                "tops-engine."
            )
        return stated

    def _ask(self, method: str, url: str, path: str, **content: Any) -> dict[str, Any]:
        import httpx

        try:
            response = self._client.request(method, f"{url}/{path}", **content)
        except httpx.TimeoutException as error:
            raise ServerError(f"The encoder {shorten(url)} did not answer in time.") from error
        except httpx.HTTPError as error:
            raise ServerError(
                f"No encoder answers at {shorten(url)} ({error}); start one by `tops encode-server MODEL`, or correct "
                "the address."
            ) from error
        try:
            answer = response.json()
        except ValueError:
            answer = None
        if response.status_code != 200 or not isinstance(answer, dict):
            raise _refusal(response, answer, url)
        return answer


def _picture(answer: dict[str, Any]) -> EncodedPicture:
    embeds, kept, unpruned = (answer.get(name) for name in ("image_embeds", "kept", "unpruned"))
    if not (isinstance(embeds, str) and isinstance(kept, int) and isinstance(unpruned, int)):
        raise ServerError("An encoder gave an answer without a picture; use the same tops-engine on both machines.")
    return EncodedPicture(embeds, kept, unpruned)


def _refusal(response: "httpx.Response", answer: object, url: str) -> TopsError:
    status = response.status_code
    stated = answer.get("error") if isinstance(answer, dict) else None
    message = str(stated.get("message", "")) if isinstance(stated, dict) else ""
    if status == 400 and message:
        is_picture = isinstance(stated, dict) and stated.get("type") == InvalidImage.__name__
        return (InvalidImage if is_picture else InvalidInput)(message)
    if status in (401, 403):
        return ServerError(f"The encoder {shorten(url)} refuses the request ({status}); check its key: TOPS_API_KEY.")
    return ServerError(f"The encoder {shorten(url)} failed ({status}): {message or shorten(response.text)}")
