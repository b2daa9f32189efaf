"""End a process of vLLM whose server is gone.

A server that is killed (SIGKILL, out of memory) cannot end its engine process. vLLM 0.32 and 0.33 leave that process
behind, with its memory.
"""

import multiprocessing
import os
import signal
import threading
import time

import psutil

#: Seconds between two looks at the parent, and seconds in which a process may end by itself.
EVERY, GRACE = 1.0, 5.0

NAME = "tops-orphan-watch"


def end_with_parent() -> None:
    """Watch the process that started this one by :mod:`multiprocessing`, and end this one when it ends."""
    parent = multiprocessing.parent_process()
    watched = any(thread.name == NAME for thread in threading.enumerate())  # vLLM may load plugins twice.
    if parent is not None and not watched:
        threading.Thread(target=_watch, args=(parent.pid,), name=NAME, daemon=True).start()


def _watch(parent: int) -> None:
    # The pipe to the parent, which multiprocessing watches, may be open in siblings too.
    try:
        process = psutil.Process(parent)
        while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
            time.sleep(EVERY)
    except psutil.NoSuchProcess:
        pass  # It ended before this process looked.
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE)
    os.kill(os.getpid(), signal.SIGKILL)
