"""A server as a client sees it: connections, models, pruning and errors."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from tops_engine.errors import InvalidInput, MissingDependency, TopsError, quote
from tops_engine.remote.encoding import Served
from tops_engine.remote.errors import explained, no_api, not_found
from tops_engine.remote.pruning import read_metrics
from tops_engine.settings import Pruning

if TYPE_CHECKING:
    from openai import AsyncOpenAI

# The longest time to open a connection; an answer may take longer.
CONNECT_SECONDS = 10.0
# How long the pruning of a server is remembered: the server may be restarted with another one.
PRUNING_SECONDS = 60.0


class Server:
    """The server of a :class:`tops_engine.remote.RemoteEngine`, which explains the parameters."""

    def __init__(self, base_url: str, model: str | None, api_key: str | None, timeout: float, max_retries: int) -> None:
        try:
            import openai  # noqa: F401
        except ImportError as error:
            raise MissingDependency("Asking a server needs the openai library; pip install 'openai>=2'.") from error
        self.base_url = checked_address(base_url)
        if not timeout > 0:
            raise InvalidInput(f"timeout={timeout} is not allowed: give a number of seconds.")
        if max_retries < 0:
            raise InvalidInput(f"max_retries={max_retries} is not allowed: give 0 or more.")
        self.timeout = timeout
        self.max_retries = max_retries
        self._api_key = api_key
        self._model = self._named = model
        self._pruning: tuple[float, Pruning | None] | None = None
        # Connections belong to the event loop they were made in.
        self._clients: dict[asyncio.AbstractEventLoop, AsyncOpenAI] = {}
        self._lock = threading.Lock()

    def client(self) -> "AsyncOpenAI":
        """Return the client of the running event loop."""
        import openai

        loop = asyncio.get_running_loop()
        with self._lock:
            for closed in [known for known in self._clients if known.is_closed()]:
                del self._clients[closed]
            if loop not in self._clients:
                # The environment variables of OpenAI do not concern this server.
                unset: dict[str, Any] = {"OpenAI-Organization": openai.Omit(), "OpenAI-Project": openai.Omit()}
                timeout = openai.Timeout(self.timeout, connect=min(self.timeout, CONNECT_SECONDS))
                self._clients[loop] = openai.AsyncOpenAI(
                    base_url=self.base_url,
                    api_key=self._api_key or "none",
                    max_retries=self.max_retries,
                    default_headers=unset,
                    # Pictures go only to the given address, so redirects are not followed. The library's default
                    # client closes itself in whichever loop is running, which logs an error.
                    http_client=openai.DefaultAsyncHttpxClient(timeout=timeout, follow_redirects=False),
                    timeout=timeout,
                )
            return self._clients[loop]

    async def close(self) -> None:
        """Close the connections of the running event loop."""
        with self._lock:
            client = self._clients.pop(asyncio.get_running_loop(), None)
        if client is not None:
            await client.close()

    @asynccontextmanager
    async def explaining(self) -> AsyncIterator[None]:
        """Convert errors of the library to errors of the engine."""
        import openai

        try:
            yield
        except openai.NotFoundError as error:
            served = [model.id for model in await self._models()]
            if self._model in served:
                raise explained(error, self.base_url, self.timeout) from error
            gone, self._model = self._model, self._named  # the server may have another model now
            raise not_found(str(gone), served) from error
        except openai.OpenAIError as error:
            raise explained(error, self.base_url, self.timeout) from error
        except TopsError:
            raise
        except (AttributeError, TypeError, ValueError) as error:
            # The library does not check the form of what it receives.
            raise no_api(self.base_url) from error

    async def connect(self) -> str:
        """Check that the server answers and has the model; return the name of the model."""
        served = [model.id for model in await self._models()]
        if self._model is not None and self._model not in served:
            raise not_found(self._model, served)
        return await self.model()

    async def model(self) -> str:
        """Return the name of the model: the given one, or the only one of the server."""
        if self._model is None:
            # Adapters are listed, too; they have a parent.
            models = [model for model in await self._models() if not (model.model_extra or {}).get("parent")]
            if len(models) != 1:
                named = ", ".join(model.id for model in models) or "none"
                raise InvalidInput(f"Say which model to ask at {self.base_url}; there are: {named}.")
            self._model = models[0].id
        return self._model

    async def served(self) -> Served:
        """Return the model of requests, and the checkpoint that vLLM states for it."""
        name = await self.model()
        roots = {model.id: (model.model_extra or {}).get("root") for model in await self._models()}
        root = roots.get(name)
        return Served(name, root if isinstance(root, str) and root else None)

    async def pruning(self) -> Pruning | None:
        """Return the pruning of requests that do not ask for one; None if the server does not state it."""
        now = time.monotonic()
        if self._pruning is None or now - self._pruning[0] > PRUNING_SECONDS:
            import openai

            try:
                text = await self.client().get(f"{self._root}/metrics", cast_to=str)
            except openai.APIStatusError:
                text = ""
            except openai.OpenAIError as error:
                raise explained(error, self.base_url, self.timeout) from error
            self._pruning = now, read_metrics(text)
        return self._pruning[1]

    async def tokenize(self, body: dict[str, Any]) -> Any:
        """Return vLLM's answer to a request to tokenize a text or messages."""
        body["model"] = await self.model()
        async with self.explaining():
            return await self.client().post(f"{self._root}/tokenize", body=body, cast_to=object)

    async def _models(self) -> list[Any]:
        import openai

        try:
            return list((await self.client().models.list()).data)
        except openai.NotFoundError:
            raise no_api(self.base_url) from None
        except openai.OpenAIError as error:
            raise explained(error, self.base_url, self.timeout) from error
        except (AttributeError, TypeError, ValueError):
            # The answer is not a list of models.
            raise no_api(self.base_url) from None

    @property
    def _root(self) -> str:
        """The address of vLLM's endpoints outside of OpenAI's protocol."""
        return self.base_url.removesuffix("/v1")


def checked_address(url: str) -> str:
    """Return the address of the API of a server.

    Raises
    ------
    InvalidInput
        If the address is not valid, or holds a name, a password, a query or a fragment: these would appear in every
        message about the server.
    """
    if "@" in url or "?" in url or "#" in url:
        raise InvalidInput(
            "The server's address holds a name, a password, a query or a fragment; write it as http://host:8000/v1. "
            "Give a key by api_key, or for commands and nodes by the environment variable TOPS_API_KEY."
        )
    try:
        parts = urlsplit(url.strip())
        is_address = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # the port or the host in brackets is not valid
        is_address = False
    if not is_address:
        raise InvalidInput(f"{quote(url)} is not an address of a server; write it as http://host:8000/v1.")
    return parts._replace(path=parts.path.rstrip("/") or "/v1").geturl()
