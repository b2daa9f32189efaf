"""The engine whose model runs behind a server."""

import asyncio
import threading
from collections.abc import AsyncGenerator, Awaitable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import aclosing
from queue import SimpleQueue
from typing import Any, TypeVar

from tops_engine.conversation.messages import Message
from tops_engine.conversation.tools import Tools
from tops_engine.errors import InvalidInput
from tops_engine.remote.answers import AnswerReader, RemoteAnswer
from tops_engine.remote.loop import event_loop, run
from tops_engine.remote.pruning import request_fields
from tops_engine.remote.requests import chat_messages, chat_request, functions_of
from tops_engine.remote.server import Server
from tops_engine.settings import Generation, Pruning

T = TypeVar("T")

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
        self._server = Server(base_url, model, api_key, timeout, max_retries)
        if max_concurrency < 1:
            raise InvalidInput(f"max_concurrency={max_concurrency} is not allowed: give 1 or more.")
        self.base_url = self._server.base_url
        self.max_concurrency = max_concurrency

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
        pruning : None is the server's own. What ``tops serve`` serves keeps, for one request, any budget up to its
            own; the method and its options have to be the server's.
        generation : length, sampling, stop strings, the answer's schema.
        cancel : set it from another thread to stop within one token; the answer so far is returned.
        tools : functions the model may call; vLLM has to be started for it (``--enable-auto-tool-choice`` and
            ``--tool-call-parser``).

        Raises
        ------
        InvalidInput
            What cannot be asked, or what the server refuses: InvalidImage, ContextLengthError.
        ModelNotFound
            If the server does not have the model.
        ServerError
            If it cannot be reached, refuses the key or fails; ServerTimeout, if it takes too long.
        """
        return run(self.achat(messages, pruning, generation, cancel, tools))

    def batch(
        self,
        conversations: Sequence[Sequence[Message]],
        pruning: Pruning | None = None,
        generation: Generation | None = None,
        cancel: threading.Event | None = None,
        tools: Tools | None = None,
    ) -> list[RemoteAnswer]:
        """Answer several conversations, ``max_concurrency`` at a time; the server brings them together."""
        return run(self.abatch(conversations, pruning, generation, cancel, tools))

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

        running = asyncio.run_coroutine_threadsafe(receive(), event_loop())
        running.add_done_callback(received.put)
        try:
            while (piece := received.get()) is not running:
                yield piece
            running.result()
        finally:
            running.cancel()

    def submit(
        self,
        messages: Sequence[Message],
        pruning: Pruning | None = None,
        generation: Generation | None = None,
    ) -> "Future[RemoteAnswer]":
        """As :meth:`chat`, without waiting for the answer; a future that is cancelled has the server stop."""
        return asyncio.run_coroutine_threadsafe(self.achat(messages, pruning, generation), event_loop())

    def connect(self, pruning: Pruning | None = None) -> tuple[str, Pruning | None]:
        """Make sure that the server answers, has the model and can prune as asked.

        Returns
        -------
        What the server calls the model; what will be pruned, None if the server does not say.

        Raises
        ------
        InvalidInput, ModelNotFound, ServerError
            As :meth:`chat`.
        """
        return run(self._connect(pruning))

    def connecting(self, pruning: Pruning | None = None) -> "Future[tuple[str, Pruning | None]]":
        """As :meth:`connect`, later; cancelling the future gives it up."""
        return asyncio.run_coroutine_threadsafe(self._connect(pruning), event_loop())

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
        pruned, request = await self._request(messages, pruning, generation, tools)
        reader = AnswerReader(pruned)
        async with self._server.explaining():
            return reader.whole(await self._server.client().chat.completions.create(**request))

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
        pruned, request = await self._request(messages, pruning, generation, tools)
        # Who cancels is told what was used until then: vLLM counts in each chunk.
        options = {"include_usage": True} | ({"continuous_usage_stats": True} if cancel else {})
        request |= {"stream": True, "stream_options": options}
        reader = AnswerReader(pruned)
        async with self._server.explaining():
            creating = self._server.client().chat.completions.create(**request)
            try:
                async with await _unless(cancel, creating) as stream:
                    while (chunk := await _unless(cancel, anext(stream, None))) is not None:
                        if piece := reader.push(chunk):
                            yield piece
            except _Cancelled:
                yield reader.answer(cancelled=True)
            else:
                yield reader.answer()

    def count_tokens(self, messages: Sequence[Message], tools: Tools | None = None) -> int:
        """Tokens of a prompt as the language model gets it, after the server's pruning; by vLLM's ``/tokenize``."""
        return run(self._count(messages, tools))

    def tokenize(self, text: str) -> list[int]:
        """The tokens of a text, without those that mark its beginning or end; by vLLM's ``/tokenize``."""
        return list(run(self._server.tokenize({"prompt": text, "add_special_tokens": False}))["tokens"])

    def close(self) -> None:
        """Close the connections of the synchronous forms; the next question opens new ones."""
        run(self.aclose())

    async def aclose(self) -> None:
        """Close the connections of this event loop; the next question opens new ones."""
        await self._server.close()

    async def _connect(self, pruning: Pruning | None) -> tuple[str, Pruning | None]:
        model = await self._server.connect()
        served = await self._server.pruning()
        return model, served if pruning is None else request_fields(pruning, served, self.base_url)[0]

    async def _request(
        self,
        messages: Sequence[Message],
        pruning: Pruning | None,
        generation: Generation | None,
        tools: Tools | None,
    ) -> tuple[dict[str, Any] | None, dict[str, Any]]:
        """What will be pruned, if that was asked for, and a request's arguments."""
        # Decoding and encoding pictures takes time that other requests of this loop need.
        body = await asyncio.to_thread(chat_request, messages, generation or Generation(), tools)
        body["model"] = await self._server.model()
        if pruning is None:
            return None, body
        runs, fields = request_fields(pruning, await self._server.pruning(), self.base_url)
        return runs.resolved(), body | {"extra_body": body.get("extra_body", {}) | fields}

    async def _count(self, messages: Sequence[Message], tools: Tools | None) -> int:
        written = await asyncio.to_thread(chat_messages, messages, partial=True)
        functions = {"tools": functions_of(tools)} if tools and tools.functions else {}
        return int((await self._server.tokenize({"messages": written} | functions))["count"])


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
