"""End a process of vLLM whose server is gone.

A server that is killed (SIGKILL, out of memory) cannot end its engine process. vLLM 0.32 and 0.33 leave that process
behind, with its memory.
"""

import multiprocessing
import os
import signal
import threading
import time

#: Seconds between two looks at the parent, and seconds in which a process may end by itself.
EVERY, GRACE = 1.0, 5.0

NAME = "tops-orphan-watch"


def end_with_parent() -> None:
    """Watch the process that started this one by :mod:`multiprocessing`, and end this one when it ends."""
    watched = any(thread.name == NAME for thread in threading.enumerate())  # vLLM may load plugins twice.
    if multiprocessing.parent_process() is not None and not watched:
        threading.Thread(target=_watch, args=(os.getppid(),), name=NAME, daemon=True).start()


def _watch(parent: int) -> None:
    # Another process adopts an orphan. The pipe to the parent, which multiprocessing has, may be open in siblings too.
    while os.getppid() == parent:
        time.sleep(EVERY)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE)
    os.kill(os.getpid(), signal.SIGKILL)
