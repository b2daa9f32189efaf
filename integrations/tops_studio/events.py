"""The websocket: the connected clients and the messages to them."""

import asyncio
import json
import struct
from collections import defaultdict
from typing import Any
from uuid import uuid4

from aiohttp import WSMsgType, web

#: The type of ComfyUI's binary message with the text of a node.
TEXT_MESSAGE = 3

#: A client with more unread messages is disconnected; it asks for the state when it reconnects.
MAX_WAITING = 2000


class Clients:
    """The connected frontends. :meth:`send` may be called from any thread, the other methods on the event loop."""

    def __init__(self) -> None:
        self._waiting: dict[str, dict[web.WebSocketResponse, asyncio.Queue[str | bytes | None]]] = defaultdict(dict)
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self) -> None:
        """Store the running event loop."""
        self._loop = asyncio.get_running_loop()

    def send(self, kind: str, data: dict[str, Any], client_id: str | None = None) -> None:
        """Send a message to one client, or to all."""
        self._post(json.dumps({"type": kind, "data": data}, default=str), client_id)

    def send_text(self, node_id: str, text: str, client_id: str) -> None:
        """Show text on a node."""
        name = node_id.encode()
        self._post(struct.pack(">II", TEXT_MESSAGE, len(name)) + name + text.encode(), client_id)

    async def serve(self, request: web.Request, greetings: list[dict[str, Any]]) -> web.WebSocketResponse:
        """Serve one connection until it ends.

        Args:
            request: ``/ws?clientId=...``.
            greetings: The first messages to the client; ``sid`` is filled in.
        """
        socket = web.WebSocketResponse(heartbeat=30, max_msg_size=2**20)
        await socket.prepare(request)
        client_id = request.query.get("clientId") or uuid4().hex
        waiting: asyncio.Queue[str | bytes | None] = asyncio.Queue(MAX_WAITING)
        self._waiting[client_id][socket] = waiting
        for greeting in greetings:
            data = greeting["data"] | ({"sid": client_id} if greeting["type"] == "status" else {})
            waiting.put_nowait(json.dumps({"type": greeting["type"], "data": data}))
        writer = asyncio.create_task(self._write(socket, waiting))
        try:
            async for message in socket:
                if message.type is WSMsgType.TEXT and "feature_flags" in message.data[:200]:
                    waiting.put_nowait(json.dumps({"type": "feature_flags", "data": FEATURES}))
        finally:
            self._waiting[client_id].pop(socket, None)
            if not self._waiting[client_id]:
                del self._waiting[client_id]
            writer.cancel()
        return socket

    async def close(self) -> None:
        """Close all connections."""
        for sockets in list(self._waiting.values()):
            for socket in list(sockets):
                await socket.close(code=1001, message=b"the server stops")

    @staticmethod
    async def _write(socket: web.WebSocketResponse, waiting: asyncio.Queue[str | bytes | None]) -> None:
        while (message := await waiting.get()) is not None:
            if isinstance(message, bytes):
                await socket.send_bytes(message)
            else:
                await socket.send_str(message)
        await socket.close(code=1013, message=b"too slow")

    def _post(self, message: str | bytes, client_id: str | None) -> None:
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._deliver, message, client_id)

    def _deliver(self, message: str | bytes, client_id: str | None) -> None:
        chosen = list(self._waiting) if client_id is None else [client_id]
        for name in chosen:
            for waiting in self._waiting.get(name, {}).values():
                if waiting.qsize() < MAX_WAITING - 1:
                    waiting.put_nowait(message)
                elif not waiting.full():
                    waiting.put_nowait(None)


#: The features of this server, under the frontend's names.
FEATURES = {"supports_preview_metadata": False, "max_upload_size": 64 * 2**20, "supports_progress_text_metadata": False}
