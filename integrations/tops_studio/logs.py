"""The log that the frontend shows in its panel: the last lines that Python's logging wrote in this process."""

import logging
import time
from collections import deque
from typing import Any

from aiohttp import web

routes = web.RouteTableDef()

#: Lines that are kept.
MOST_LINES = 300


class LogLines(logging.Handler):
    """Keeps the last lines of the log."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
        self.lines: deque[dict[str, str]] = deque(maxlen=MOST_LINES)

    def emit(self, record: logging.LogRecord) -> None:
        when = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(record.created))
        self.lines.append({"t": when, "m": self.format(record) + "\n"})


LOG = web.AppKey("log", LogLines)


@routes.get("/internal/logs")
async def log_text(request: web.Request) -> web.Response:
    return web.json_response("".join(f"{line['t']} - {line['m']}" for line in request.app[LOG].lines))


@routes.get("/internal/logs/raw")
async def log_lines(request: web.Request) -> web.Response:
    answer: dict[str, Any] = {"entries": list(request.app[LOG].lines), "size": {"cols": 120, "rows": 30}}
    return web.json_response(answer)


@routes.patch("/internal/logs/subscribe")
async def subscribe(request: web.Request) -> web.Response:
    """Accept the wish for new lines; the panel shows them when it is opened again."""
    return web.Response()
