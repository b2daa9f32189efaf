"""The engine whose model runs behind a server."""

import asyncio
import threading
from collections.abc import AsyncGenerator, Awaitable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import aclosing
from functools import partial
from queue import SimpleQueue
from typing import Any, TypeVar

from PIL import Image

from tops_engine.answers.base import Piece
from tops_engine.contract import ChatEngine, Request
from tops_engine.conversation.messages import Message, user_message
from tops_engine.conversation.tools import Tools
from tops_engine.errors import InvalidInput
from tops_engine.remote.answers import AnswerReader, RemoteAnswer
from tops_engine.remote.encoding import Encoder
from tops_engine.remote.loop import event_loop, wait_for
from tops_engine.remote.pruning import request_fields
from tops_engine.remote.requests import (
    WritePicture,
    chat_messages,
    chat_request,
    continuation,
    data_url,
    functions_of,
    own_keeps,
)
from tops_engine.remote.sent_pictures import SentPictures
from tops_engine.remote.server import Server
from tops_engine.settings import Generation, Pruning
from tops_engine.text import valid_text

T = TypeVar("T")

# Seconds between two checks whether a waiting request was cancelled.
POLL_SECONDS = 0.05


class RemoteEngine(ChatEngine[RemoteAnswer]):
    """A model behind a server that speaks OpenAI's protocol, such as ``tops serve`` and ``vllm serve``.

    It takes the same questions as :class:`tops_engine.engine.Engine`, from several threads or in an event loop. Its
    answers state less: only the machine with the model knows the rest, see :class:`RemoteAnswer`.

    Parameters
    ----------
    base_url : an http or https address, such as ``http://host:8000/v1``; ``/v1`` is added if there is no path.
    model : the name of the model on the server; None is its only model.
    api_key : the key that the server was started with, if it demands one. It is not read from the environment.
    timeout : seconds without any data from the server, for each attempt.
    max_retries : how often a request is repeated if there is no connection, or if the server is busy or fails.
    max_concurrency : how many requests :meth:`batch` sends at once.
    encoder : encodes and prunes the pictures, so that the server gets visual tokens in their place
        (:func:`tops_engine.encoding.encoder_at`); None sends the pictures. The server must be vLLM with
        ``--enable-mm-embeds``.

    Raises
    ------
    InvalidInput
        If the address is not valid, or a number is out of range.
    MissingDependency
        If the openai library is not installed.
    """

    def __init__(
        self,
        base_url: str,
        model: str | None = None,
        api_key: str | None = None,
        timeout: float = 600.0,
        max_retries: int = 2,
        max_concurrency: int = 64,
        encoder: Encoder | None = None,
    ) -> None:
        self._server = Server(base_url, model, api_key, timeout, max_retries)
        self._pictures = None if encoder is None else SentPictures(encoder, self._server)
        if max_concurrency < 1:
            raise InvalidInput(f"max_concurrency={max_concurrency} is not allowed: give 1 or more.")
        self.base_url = self._server.base_url
        self.max_concurrency = max_concurrency

    def run(self, requests: Sequence[Request], cancel: threading.Event | None = None) -> list[RemoteAnswer]:
        return wait_for(self.arun(requests, cancel))

    def run_stream(self, request: Request, cancel: threading.Event | None = None) -> Iterator[Piece | RemoteAnswer]:
        received: SimpleQueue[Any] = SimpleQueue()

        async def receive() -> None:
            async with aclosing(self.arun_stream(request, cancel)) as pieces:
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
        """Start to answer one conversation without waiting; cancelling the future stops the server."""
        return asyncio.run_coroutine_threadsafe(self.achat(messages, pruning, generation), event_loop())

    async def achat(
        self,
        messages: Sequence[Message],
        pruning: Pruning | None = None,
        generation: Generation | None = None,
        cancel: threading.Event | None = None,
        tools: Tools | None = None,
    ) -> RemoteAnswer:
        """Answer one conversation in an event loop, as :meth:`chat`; cancelling the task stops the server."""
        return (await self.arun([Request(messages, pruning, generation or Generation(), tools)], cancel))[0]

    async def abatch(
        self,
        conversations: Sequence[Sequence[Message]],
        pruning: Pruning | None = None,
        generation: Generation | None = None,
        cancel: threading.Event | None = None,
        tools: Tools | None = None,
    ) -> list[RemoteAnswer]:
        """Answer several conversations in an event loop, as :meth:`batch`."""
        generation = generation or Generation()
        return await self.arun([Request(messages, pruning, generation, tools) for messages in conversations], cancel)

    def astream(
        self,
        messages: Sequence[Message],
        pruning: Pruning | None = None,
        generation: Generation | None = None,
        cancel: threading.Event | None = None,
        tools: Tools | None = None,
    ) -> AsyncGenerator[Piece | RemoteAnswer, None]:
        """Answer one conversation piece by piece in an event loop, as :meth:`stream`."""
        return self.arun_stream(Request(messages, pruning, generation or Generation(), tools), cancel)

    async def arun(self, requests: Sequence[Request], cancel: threading.Event | None = None) -> list[RemoteAnswer]:
        """Answer requests in an event loop, ``max_concurrency`` at a time, as :meth:`run`."""
        limit = asyncio.Semaphore(self.max_concurrency)

        async def answer(request: Request) -> RemoteAnswer:
            async with limit:
                return await self._answer(request, cancel)

        tasks = [asyncio.ensure_future(answer(request)) for request in requests]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()

    async def arun_stream(
        self, request: Request, cancel: threading.Event | None = None
    ) -> AsyncGenerator[Piece | RemoteAnswer, None]:
        """Answer one request piece by piece in an event loop, as :meth:`run_stream`."""
        pruned, body = await self._body(request)
        # vLLM then counts in each chunk, so that a cancelled answer has its usage, too.
        options = {"include_usage": True} | ({"continuous_usage_stats": True} if cancel else {})
        body |= {"stream": True, "stream_options": options}
        reader = self._reader(pruned, body)
        async with self._server.explaining():
            creating = self._server.client().chat.completions.create(**body)
            try:
                async with await _unless(cancel, creating) as stream:
                    while (chunk := await _unless(cancel, anext(stream, None))) is not None:
                        for piece in reader.push(chunk):
                            yield piece
            except _Cancelled:
                yield reader.answer(cancelled=True)
            else:
                yield reader.answer()

    def count_tokens(self, messages: Sequence[Message], tools: Tools | None = None) -> int:
        return wait_for(self._count(messages, tools))

    def count_visual_tokens(self, width: int, height: int) -> int:
        blank = Image.new("RGB", (width, height))
        return self.count_tokens([user_message("a", blank)]) - self.count_tokens([user_message("a")])

    def tokenize(self, text: str) -> list[int]:
        return list(
            wait_for(self._server.tokenize({"prompt": valid_text(text), "add_special_tokens": False}))["tokens"]
        )

    def connect(self, pruning: Pruning | None = None) -> tuple[str, Pruning | None]:
        """Check that the server answers, has the model and can prune as asked.

        Returns
        -------
        The name of the model on the server; the pruning that will run, None if the server does not state it.

        Raises
        ------
        InvalidInput, ModelNotFound, ServerError
            As :meth:`chat`.
        """
        return wait_for(self._connect(pruning))

    def connecting(self, pruning: Pruning | None = None) -> "Future[tuple[str, Pruning | None]]":
        """Start :meth:`connect` without waiting; cancelling the future ends the attempt."""
        return asyncio.run_coroutine_threadsafe(self._connect(pruning), event_loop())

    def close(self) -> None:
        """Close the connections of the synchronous methods; the next question opens new ones."""
        wait_for(self.aclose())

    async def aclose(self) -> None:
        """Close the connections of this event loop; the next question opens new ones."""
        await self._server.close()

    async def _answer(self, request: Request, cancel: threading.Event | None) -> RemoteAnswer:
        if cancel is not None:
            # Only a stream returns the answer so far.
            async for piece in self.arun_stream(request, cancel):
                if isinstance(piece, RemoteAnswer):
                    answer = piece
            return answer
        pruned, body = await self._body(request)
        reader = self._reader(pruned, body)
        async with self._server.explaining():
            return reader.whole(await self._server.client().chat.completions.create(**body))

    async def _connect(self, pruning: Pruning | None) -> tuple[str, Pruning | None]:
        model = await self._server.connect()
        if self._pictures is not None:
            await self._pictures.connect()
            return model, await self._pictures.pruning(pruning)
        served = await self._server.pruning()
        return model, served if pruning is None else request_fields(pruning, served, self.base_url)[0]

    async def _body(self, request: Request) -> tuple[dict[str, Any] | None, dict[str, Any]]:
        """Return the options of the pruning, if one was asked for, and the arguments of the HTTP request."""
        if self._pictures is not None:
            return await self._encoded_body(request, self._pictures)
        # Decoding and encoding pictures takes time that the other requests of this loop need.
        body = await asyncio.to_thread(chat_request, request.messages, request.generation, request.tools)
        body["model"] = await self._server.model()
        keeps = own_keeps(request.messages)
        if request.pruning is None and not any(keeps):
            return None, body
        served = await self._server.pruning()
        # A picture without a budget of its own has what the server was started with.
        asked = request.pruning or served or Pruning()
        runs, fields = request_fields(asked, served, self.base_url, keeps)
        return runs.resolved(), body | {"extra_body": body.get("extra_body", {}) | fields}

    def _reader(self, pruned: dict[str, Any] | None, body: dict[str, Any]) -> AnswerReader:
        """Return the reader of the answer to a request."""
        visual = None if self._pictures is None else self._pictures.num_tokens(body["messages"])
        return AnswerReader(pruned, bool(continuation(body["messages"])), visual)

    async def _encoded_body(self, request: Request, pictures: SentPictures) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return what :meth:`_body` does, with pictures as their kept tokens."""
        pruning = await pictures.pruning(request.pruning)
        if any(keep is not None for keep in own_keeps(request.messages)):
            raise InvalidInput("Encoded pictures of a server keep one number of tokens; leave out their own budgets.")
        write = partial(pictures.write, pruning=pruning)
        body = await asyncio.to_thread(chat_request, request.messages, request.generation, request.tools, write)
        return pruning.resolved(), body | {"model": await self._server.model()}

    async def _count(self, messages: Sequence[Message], tools: Tools | None) -> int:
        write: WritePicture = data_url
        if self._pictures is not None:
            write = partial(self._pictures.write_to_count, pruning=await self._pictures.last_pruning())
        in_part = partial(chat_messages, messages, partial=True, write_picture=write)
        written = await asyncio.to_thread(in_part)
        if not written:
            return 0
        functions = {"tools": functions_of(tools)} if tools and tools.functions else {}
        try:
            counted = await self._server.tokenize({"messages": written} | functions | continuation(written))
        except InvalidInput:
            # The template of the server may demand what the rest of the conversation holds.
            completed = await asyncio.to_thread(in_part, taking_turns=True)
            if completed == written:
                raise
            counted = await self._server.tokenize({"messages": completed} | functions | continuation(completed))
        return int(counted["count"])


class _Cancelled(Exception):
    """The caller cancelled the request."""


async def _unless(cancel: threading.Event | None, waiting: Awaitable[T]) -> T:
    """Wait for a result; raise :class:`_Cancelled` if the caller cancels before."""
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
