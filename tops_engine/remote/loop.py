"""The event loop of the synchronous methods, in a thread of its own."""

import asyncio
import os
import threading
from collections.abc import Coroutine
from functools import cache
from typing import Any, TypeVar

T = TypeVar("T")


@cache
def event_loop() -> asyncio.AbstractEventLoop:
    """Return the one loop of the process; it runs as long as the process."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="tops-remote", daemon=True).start()
    return loop


def wait_for(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine in that loop and return its result; it stops if the caller is interrupted."""
    running = asyncio.run_coroutine_threadsafe(work, event_loop())
    try:
        return running.result()
    except BaseException:
        running.cancel()
        raise


if hasattr(os, "register_at_fork"):
    # A forked process inherits the loop without its thread.
    os.register_at_fork(after_in_child=event_loop.cache_clear)
