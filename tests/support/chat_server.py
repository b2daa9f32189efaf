"""A server with OpenAI's protocol over real sockets that answers with the engine; it stands in for vLLM in tests."""

import asyncio
import base64
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from aiohttp import web

from tops_engine.answers.base import ToolCall
from tops_engine.answers.report import Answer
from tops_engine.conversation.tools import Tools
from tops_engine.engine import Engine
from tops_engine.errors import ContextLengthError, InvalidImage, InvalidInput
from tops_engine.settings import Generation, Pruning

#: How often a server of the standard library looks whether it is to end; its own half a second delays each test.
POLL_SECONDS = 0.01

SAMPLING = ("max_tokens", "temperature", "top_p", "top_k", "repetition_penalty", "seed", "stop")


def until(condition: Callable[[], object], seconds: float = 60) -> None:
    """Wait until a condition is true, for work that a server or client does asynchronously."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


class ChatServer:
    """A chat server that answers at ``url`` inside :meth:`running`.

    Attributes
    ----------
    requests : the bodies of all requests for answers.
    failures : error statuses of the next answers; all later answers succeed.
    delay : seconds before an answer; setting 0 also releases the answers that wait.
    checkpoint : what the server states as the checkpoint of its models, as vLLM does; None states nothing.
    encoded : the pictures by their ``image_embeds``; None refuses these, as vLLM without --enable-mm-embeds does.
    breaks_off : whether the server aborts connections, also those of running streams.
    port : the port to listen at; 0 chooses a free one the first time.
    num_abandoned : number of requests whose client disconnected.
    num_running, most_at_once : number of running requests, and the largest such number so far.
    """

    def __init__(self, engine: Engine, pruning: Pruning, models: tuple[str, ...] = ("mini",), key: str | None = None):
        self.engine, self.pruning, self.models, self.key = engine, pruning, models, key
        self.requests: list[dict[str, Any]] = []
        self.failures: list[int] = []
        self.delay = 0.0
        self.breaks_off = False
        self.checkpoint: str | None = None
        self.encoded: dict[str, Any] | None = None
        self.num_abandoned = self.most_at_once = self.num_running = 0
        self.url = ""
        self.port = 0

    @contextmanager
    def running(self) -> Iterator["ChatServer"]:
        loop = asyncio.new_event_loop()
        thread = threading.Thread(target=loop.run_forever, daemon=True)
        thread.start()
        runner = asyncio.run_coroutine_threadsafe(self._start(), loop).result()
        try:
            yield self
        finally:
            asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result()
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()

    async def _start(self) -> web.AppRunner:
        app = web.Application(client_max_size=2**28, middlewares=[self._checked])
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_post("/tokenize", self._tokenize)
        app.router.add_get("/metrics", self._metrics)
        runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await runner.setup()
        # The server keeps its port when it is started again.
        site = web.TCPSite(runner, "127.0.0.1", self.port)
        await site.start()
        host, self.port = runner.addresses[0][:2]
        self.url = f"http://{host}:{self.port}/v1"
        return runner

    @web.middleware
    async def _checked(self, request: web.Request, handler: Any) -> web.StreamResponse:
        if self.key and request.headers.get("Authorization") != f"Bearer {self.key}":
            return web.json_response({"error": "Unauthorized"}, status=401)
        try:
            return await handler(request)
        except InvalidImage as error:
            return _refusal(400, f"Failed to load image: {error}")
        except ContextLengthError as error:
            return _refusal(400, f"This model's maximum context length is less: {error}")
        except InvalidInput as error:
            return _refusal(400, str(error))

    async def _models(self, request: web.Request) -> web.Response:
        root = {} if self.checkpoint is None else {"root": self.checkpoint}
        models = [{"id": name, "object": "model"} | root for name in self.models]
        return web.json_response({"object": "list", "data": models})

    async def _metrics(self, request: web.Request) -> web.Response:
        labels = {"method": self.pruning.method, "keep": self.pruning.keep} | (self.pruning.model_extra or {})
        written = ",".join(f'{name}="{value}"' for name, value in labels.items())
        line = f"tops_pruning_info{{{written}}} 1.0\n" if self.pruning.method != "none" else ""
        return web.Response(text=f"# HELP of the others\nvllm:num_requests_running 0.0\n{line}")

    async def _tokenize(self, request: web.Request) -> web.Response:
        body = await request.json()
        if "prompt" in body:
            tokenizer = self.engine.family.tokenizer
            tokens = tokenizer.encode(body["prompt"], add_special_tokens=body["add_special_tokens"])
            return web.json_response({"count": len(tokens), "tokens": tokens})
        # The number of kept tokens of the prompt is known after it was read.
        read = _engine_messages(body["messages"], self.encoded)
        tools = Tools(_functions(body)) if body.get("tools") else None
        answer = await asyncio.to_thread(self.engine.chat, read, self.pruning, Generation(max_tokens=1), None, tools)
        return web.json_response({"count": answer.usage.input_tokens, "tokens": []})

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.requests.append(body)
        self.num_running += 1
        self.most_at_once = max(self.most_at_once, self.num_running)
        try:
            begun = time.monotonic()
            while time.monotonic() - begun < self.delay:
                await asyncio.sleep(0.01)
            if self.failures:
                return _refusal(self.failures.pop(0), "It went wrong")
            if body["model"] not in self.models:
                return _refusal(404, f"The model `{body['model']}` does not exist.", "model")
            return await self._answered(request, body)
        except (asyncio.CancelledError, ConnectionResetError):
            self.num_abandoned += 1
            raise
        finally:
            self.num_running -= 1

    async def _answered(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        keep = body.get("mm_processor_kwargs", {}).get("tops_keep", self.pruning.keep)
        messages, pruning = _engine_messages(body["messages"], self.encoded), self.pruning
        if isinstance(keep, list):
            budgets = iter(keep)
            for part in (part for message in messages for part in message["content"] if part["type"] == "image"):
                part["keep"] = next(budgets)
        else:
            pruning = pruning.model_copy(update={"keep": keep})
        _check_continuation(body)
        asked = (messages, pruning, _generation(body))
        tools = _tools(body)
        cancel = threading.Event()
        pieces: asyncio.Queue[Any] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def write() -> None:
            try:
                for piece in self.engine.stream(*asked, cancel, tools):
                    loop.call_soon_threadsafe(pieces.put_nowait, piece)
            except Exception as error:
                loop.call_soon_threadsafe(pieces.put_nowait, error)

        writing = loop.run_in_executor(None, write)
        try:
            first = await pieces.get()
            if isinstance(first, Exception):
                raise first
            if not body.get("stream"):
                answer = first
                while not isinstance(answer, Answer):
                    answer = await pieces.get()
                return web.json_response(_completion(body["model"], answer))
            return await self._streamed(request, body, first, pieces)
        finally:
            cancel.set()
            await asyncio.shield(writing)

    async def _streamed(
        self, request: web.Request, body: dict[str, Any], piece: Any, pieces: "asyncio.Queue[Any]"
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)

        async def send(choices: list[dict[str, Any]], usage: dict[str, Any] | None = None) -> None:
            chunk = {"id": "1", "object": "chat.completion.chunk", "created": 0, "model": body["model"]}
            if self.breaks_off and request.transport is not None:
                request.transport.abort()
            data = json.dumps(chunk | {"choices": choices, "usage": usage})
            await response.write(f"data: {data}\n\n".encode())

        await send([{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}])
        while not isinstance(piece, Answer):
            if isinstance(piece, Exception):
                raise piece
            running = _usage_of(0, 0) if body["stream_options"].get("continuous_usage_stats") else None
            if not isinstance(piece, ToolCall):
                await send([{"index": 0, "delta": {"content": piece}, "finish_reason": None}], running)
            piece = await pieces.get()
        for index, call in enumerate(_calls(piece)):
            await send([{"index": 0, "delta": {"tool_calls": [{"index": index, **call}]}, "finish_reason": None}])
        await send([{"index": 0, "delta": {}, "finish_reason": _reason(piece)}])
        await send([], _usage(piece))
        await response.write(b"data: [DONE]\n\n")
        return response


def _refusal(status: int, message: str, param: str | None = None) -> web.Response:
    error = {"message": message, "type": "BadRequestError", "param": param, "code": status}
    return web.json_response({"error": error}, status=status)


def _check_continuation(body: Mapping[str, Any]) -> None:
    """Refuse what vLLM refuses; the engine continues an assistant's last message, vLLM only if it is told to."""
    continues = body.get("continue_final_message", False)
    if continues and body.get("add_generation_prompt", True):
        raise InvalidInput("Cannot set both `continue_final_message` and `add_generation_prompt` to True.")
    if continues != (body["messages"][-1]["role"] == "assistant"):
        raise InvalidInput("This server does not begin another message after the assistant's.")


def _engine_messages(messages: list[dict[str, Any]], encoded: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    read: list[dict[str, Any]] = []
    for message in messages:
        content = _content(message.get("content"), encoded)
        if read and read[-1]["role"] == "tool" and message["role"] == "user":
            # The protocol does not allow pictures in tool results; the engine does.
            read[-1]["content"] += content
        else:
            read.append({**message, "content": content})
    return read


def _content(content: Any, encoded: Mapping[str, Any] | None) -> Any:
    if not isinstance(content, list):
        return [{"type": "text", "text": content or ""}]
    return [_part(part, encoded) for part in content]


def _part(part: dict[str, Any], encoded: Mapping[str, Any] | None) -> dict[str, Any]:
    if part["type"] == "image_embeds":
        if encoded is None:
            raise InvalidInput("You must set `--enable-mm-embeds` to input `image_embeds`")
        return {"type": "image", "image": encoded[part["image_embeds"]]}
    if part["type"] != "image_url":
        return part
    return {"type": "image", "image": base64.b64decode(part["image_url"]["url"].partition(",")[2])}


def _generation(body: Mapping[str, Any]) -> Generation:
    options = {name: body[name] for name in SAMPLING if name in body}
    wanted = body.get("response_format")
    if wanted is not None:
        options["json_schema"] = wanted["json_schema"]["schema"] if "json_schema" in wanted else {"type": "object"}
    return Generation(**options)


def _tools(body: Mapping[str, Any]) -> Tools | None:
    if not body.get("tools"):
        return None
    choice = body["tool_choice"]
    name = choice["function"]["name"] if isinstance(choice, dict) else choice
    return Tools(_functions(body), name, body.get("parallel_tool_calls", True))


def _functions(body: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the client's functions without ``strict``, which each must set: the engine always follows schemas."""
    assert all(tool["function"].pop("strict") for tool in body["tools"])
    return list(body["tools"])


def _completion(model: str, answer: Answer) -> dict[str, Any]:
    message = {"role": "assistant", "content": answer.text, "tool_calls": _calls(answer) or None}
    choice = {"index": 0, "message": message, "finish_reason": _reason(answer)}
    head = {"id": "1", "object": "chat.completion", "created": 0, "model": model}
    return head | {"choices": [choice], "usage": _usage(answer)}


def _calls(answer: Answer) -> list[dict[str, Any]]:
    made = [
        {
            "id": f"call_{number}",
            "type": "function",
            "function": {"name": call.name, "arguments": _json(call.arguments)},
        }
        for number, call in enumerate(answer.tool_calls)
    ]
    # Like vLLM, which streams the existing part of a cut-off call.
    cut = [
        {"id": "call_cut", "type": "function", "function": {"name": "cut", "arguments": call.text}}
        for call in answer.invalid_tool_calls
    ]
    return made + cut


def _json(arguments: Mapping[str, Any]) -> str:
    return json.dumps(arguments, ensure_ascii=False)


def _reason(answer: Answer) -> str:
    return "tool_calls" if answer.tool_calls and answer.finish_reason == "stop" else answer.finish_reason


def _usage(answer: Answer) -> dict[str, Any]:
    usage = answer.usage
    kept = sum(usage.stages[0].visual_tokens) if usage.stages else 0
    details = {"cached_tokens": usage.reused_tokens, "multimodal_tokens": {"image": kept} if kept else None}
    return _usage_of(usage.input_tokens, usage.completion_tokens) | {"prompt_tokens_details": details}


def _usage_of(prompt: int, completion: int) -> dict[str, Any]:
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
