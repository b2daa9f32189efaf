"""The engine whose model runs behind a server."""

import asyncio
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Coroutine, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager
from functools import cache
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from tops_engine.errors import InvalidInput, MissingDependency
from tops_engine.messages import Message
from tops_engine.remote.answers import AnswerReader, RemoteAnswer
from tops_engine.remote.errors import explained, no_api, not_found
from tops_engine.remote.requests import chat_request
from tops_engine.settings import Generation, Pruning
from tops_engine.tools import Tools

if TYPE_CHECKING:
    from openai import AsyncOpenAI

T = TypeVar("T")

# How long a connection may take to come about; an answer may take longer.
CONNECT_SECONDS = 10.0
# How often a request that waits looks whether it was cancelled.
POLL_SECONDS = 0.05


class RemoteEngine:
    """Asks a server what :class:`tops_engine.engine.Engine` asks its model. Safe to use from several threads.

    The server speaks OpenAI's protocol, such as ``tops serve`` and ``vllm serve``. What only the machine with the model
    can know is not in its answers: see :class:`RemoteAnswer`.

    Parameters
    ----------
    base_url : http or https address, such as ``http://host:8000/v1``; ``/v1`` is added where there is no path.
    model : as the server calls it; None is its only one.
    api_key : what the server was started with, if it demands one. The environment is not asked for it.
    timeout : seconds without a sign of life, for each attempt.
    max_retries : how often a request is repeated that found no connection, or a server that was busy or failed.
    max_concurrency : how many requests :meth:`batch` has on their way at once.

    Raises
    ------
    InvalidInput
        If the address is none, or a number out of range.
    MissingDependency
        Without the openai library.
    """

    def __init__(
        self,
        base_url: str,
        model: str | None = None,
        api_key: str | None = None,
        timeout: float = 600.0,
        max_retries: int = 2,
        max_concurrency: int = 64,
    ) -> None:
        try:
            import openai  # noqa: F401
        except ImportError as error:
            raise MissingDependency(
                "Asking a server needs the openai library; pip install 'tops-engine[server]'."
            ) from error
        self.base_url = _checked_url(base_url)
        for name, value, least in (("timeout", timeout, 0.001), ("max_concurrency", max_concurrency, 1)):
            if not value >= least:
                raise InvalidInput(f"{name}={value} is not allowed: give a number from {least}.")
        if max_retries < 0:
            raise InvalidInput(f"max_retries={max_retries} is not allowed: give 0 or more.")
        self.model = model
        self.timeout = timeout
        self.max_retries = max_retries
        self.max_concurrency = max_concurrency
        self._api_key = api_key
        self._served: str | None = model
        # Connections belong to the event loop they were made in.
        self._clients: dict[asyncio.AbstractEventLoop, AsyncOpenAI] = {}
        self._lock = threading.Lock()

    def chat(
        self,
        messages: Sequence[Message],
        pruning: Pruning | None = None,
        generation: Generation | None = None,
        cancel: threading.Event | None = None,
        tools: Tools | None = None,
    ) -> RemoteAnswer:
        """Answer one conversation.

        Parameters
        ----------
        messages : as for :meth:`Engine.chat`, without videos.
        pruning : None is the server's own, and the only one that is known to be followed.
        generation : length, sampling, stop strings, the answer's schema.
        cancel : set it from another thread to stop within one token; the answer so far is returned.
        tools : functions the model may call; the server has to be started for it (vLLM: ``--enable-auto-tool-choice``
            and ``--tool-call-parser``) unless the choice demands a call.

        Raises
        ------
        InvalidInput
            What cannot be asked, or what the server refuses: InvalidImage, ContextLengthError.
        ModelNotFound
            If the server does not have the model.
        ServerError
            If it cannot be reached, refuses the key or fails; ServerTimeout, if it takes too long.
        """
        return _run(self.achat(messages, pruning, generation, cancel, tools))

    def batch(
        self,
        conversations: Sequence[Sequence[Message]],
        pruning: Pruning | None = None,
        generation: Generation | None = None,
        cancel: threading.Event | None = None,
        tools: Tools | None = None,
    ) -> list[RemoteAnswer]:
        """Answer several conversations, ``max_concurrency`` at a time; the server brings them together."""
        return _run(self.abatch(conversations, pruning, generation, cancel, tools))

    def stream(
        self,
        messages: Sequence[Message],
        pruning: Pruning | None = None,
        generation: Generation | None = None,
        cancel: threading.Event | None = None,
        tools: Tools | None = None,
    ) -> Iterator[str | RemoteAnswer]:
        """Answer one conversation piece by piece: texts as they come, then the answer.

        Who reads no further has the server stop.
        """
        received: SimpleQueue[Any] = SimpleQueue()

        async def receive() -> None:
            async with aclosing(self.astream(messages, pruning, generation, cancel, tools)) as pieces:
                async for piece in pieces:
                    received.put(piece)

        running = asyncio.run_coroutine_threadsafe(receive(), _loop())
        running.add_done_callback(received.put)
        try:
            while (piece := received.get()) is not running:
                yield piece
            running.result()
        finally:
            running.cancel()

    async def achat(
        self,
        messages: Sequence[Message],
        pruning: Pruning | None = None,
        generation: Generation | None = None,
        cancel: threading.Event | None = None,
        tools: Tools | None = None,
    ) -> RemoteAnswer:
        """As :meth:`chat`, in an event loop; a task that is cancelled has the server stop."""
        if cancel is not None:
            *_, answer = [piece async for piece in self.astream(messages, pruning, generation, cancel, tools)]
            assert isinstance(answer, RemoteAnswer)
            return answer
        asked, request = await self._request(messages, pruning, generation, tools)
        reader = AnswerReader(asked)
        async with self._explaining():
            return reader.whole(await self._client().chat.completions.create(**request))

    async def abatch(
        self,
        conversations: Sequence[Sequence[Message]],
        pruning: Pruning | None = None,
        generation: Generation | None = None,
        cancel: threading.Event | None = None,
        tools: Tools | None = None,
    ) -> list[RemoteAnswer]:
        """As :meth:`batch`, in an event loop."""
        limit = asyncio.Semaphore(self.max_concurrency)

        async def ask(messages: Sequence[Message]) -> RemoteAnswer:
            async with limit:
                return await self.achat(messages, pruning, generation, cancel, tools)

        tasks = [asyncio.ensure_future(ask(messages)) for messages in conversations]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()

    async def astream(
        self,
        messages: Sequence[Message],
        pruning: Pruning | None = None,
        generation: Generation | None = None,
        cancel: threading.Event | None = None,
        tools: Tools | None = None,
    ) -> AsyncGenerator[str | RemoteAnswer, None]:
        """As :meth:`stream`, in an event loop."""
        asked, request = await self._request(messages, pruning, generation, tools)
        # Who cancels is told what was used until then: vLLM counts in each chunk.
        options = {"include_usage": True} | ({"continuous_usage_stats": True} if cancel else {})
        request |= {"stream": True, "stream_options": options}
        reader = AnswerReader(asked)
        async with self._explaining():
            creating = self._client().chat.completions.create(**request)
            try:
                async with await _unless(cancel, creating) as stream:
                    while (chunk := await _unless(cancel, anext(stream, None))) is not None:
                        if piece := reader.push(chunk):
                            yield piece
            except _Cancelled:
                yield reader.answer(cancelled=True)
            else:
                yield reader.answer()

    async def served_models(self) -> list[str]:
        """What the server calls its models, adapters included."""
        return [model.id for model in await self._models()]

    def close(self) -> None:
        """Close the connections of the synchronous forms; the next question opens new ones."""
        _run(self.aclose())

    async def aclose(self) -> None:
        """Close the connections of this event loop; the next question opens new ones."""
        with self._lock:
            client = self._clients.pop(asyncio.get_running_loop(), None)
        if client is not None:
            await client.close()

    async def _request(
        self,
        messages: Sequence[Message],
        pruning: Pruning | None,
        generation: Generation | None,
        tools: Tools | None,
    ) -> tuple[dict[str, Any] | None, dict[str, Any]]:
        """The pruning asked for, and a request's arguments."""
        if pruning is not None:
            raise InvalidInput(
                "What this server prunes was chosen when it was started (TOPS_KEEP); leave out the pruning."
            )
        # Decoding and encoding pictures takes time that other requests of this loop need.
        body = await asyncio.to_thread(chat_request, messages, generation or Generation(), tools)
        return None, {"model": await self._served_model()} | body

    async def _served_model(self) -> str:
        """The model to ask: the one named, or the server's only one."""
        if self._served is None:
            # Adapters have a parent.
            models = [model for model in await self._models() if not (model.model_extra or {}).get("parent")]
            if len(models) != 1:
                named = ", ".join(model.id for model in models) or "none"
                raise InvalidInput(f"Say which model to ask at {self.base_url}; there are: {named}.")
            self._served = models[0].id
        return self._served

    async def _models(self) -> list[Any]:
        import openai

        try:
            return list((await self._client().models.list()).data)
        except openai.NotFoundError:
            raise no_api(self.base_url) from None
        except openai.OpenAIError as error:
            raise explained(error, self.base_url, self.timeout) from error
        except (AttributeError, TypeError, ValueError):
            # A page that is no list of models.
            raise no_api(self.base_url) from None

    @asynccontextmanager
    async def _explaining(self) -> AsyncIterator[None]:
        """Turn the library's errors into the engine's."""
        import openai

        try:
            yield
        except openai.NotFoundError as error:
            served = await self.served_models()
            if self._served in served:
                raise explained(error, self.base_url, self.timeout) from error
            raise not_found(str(self._served), served) from error
        except openai.OpenAIError as error:
            raise explained(error, self.base_url, self.timeout) from error

    def _client(self) -> "AsyncOpenAI":
        """The client of the running event loop."""
        import openai

        loop = asyncio.get_running_loop()
        with self._lock:
            for closed in [known for known in self._clients if known.is_closed()]:
                del self._clients[closed]
            if loop not in self._clients:
                # What the environment says of OpenAI is nothing that concerns this server.
                unset: dict[str, Any] = {"OpenAI-Organization": openai.Omit(), "OpenAI-Project": openai.Omit()}
                self._clients[loop] = openai.AsyncOpenAI(
                    base_url=self.base_url,
                    api_key=self._api_key or "none",
                    timeout=openai.Timeout(self.timeout, connect=min(self.timeout, CONNECT_SECONDS)),
                    max_retries=self.max_retries,
                    default_headers=unset,
                )
            return self._clients[loop]


def _checked_url(url: str) -> str:
    parts = urlsplit(url.strip())
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InvalidInput(f"{url!r} is no address of a server; it reads http://host:8000/v1.")
    return parts._replace(path=parts.path.rstrip("/") or "/v1").geturl()


class _Cancelled(Exception):
    """The caller wants no more of it."""


async def _unless(cancel: threading.Event | None, waiting: Awaitable[T]) -> T:
    """What is waited for, unless the caller cancels before."""
    if cancel is None:
        return await waiting
    task = asyncio.ensure_future(waiting)
    try:
        while not task.done() and not cancel.is_set():
            await asyncio.wait([task], timeout=POLL_SECONDS)
        if cancel.is_set():
            raise _Cancelled
        return task.result()
    finally:
        if not task.done():
            task.cancel()
            await asyncio.wait([task])


@cache
def _loop() -> asyncio.AbstractEventLoop:
    """The event loop behind the synchronous forms, in a thread of its own."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="tops-remote", daemon=True).start()
    return loop


def _run(work: Coroutine[Any, Any, T]) -> T:
    """Do it in that loop, and stop it there if the caller is interrupted."""
    running = asyncio.run_coroutine_threadsafe(work, _loop())
    try:
        return running.result()
    except BaseException:
        running.cancel()
        raise
