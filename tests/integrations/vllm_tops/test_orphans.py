"""Test that a process whose parent was killed ends; vLLM itself is not needed."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress

PARENT = """
import multiprocessing, signal, sys, time
from vllm_tops import orphans

def child(ignores):
    if ignores:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    orphans.EVERY = orphans.GRACE = 0.05
    orphans.end_with_parent()
    time.sleep(600)

if __name__ == "__main__":
    orphans.end_with_parent()  # not started by multiprocessing: nothing to watch
    children = [multiprocessing.Process(target=child, args=(ignores,)) for ignores in (False, True)]
    for process in children:
        process.start()
    print(*[process.pid for process in children], flush=True)
    time.sleep(600)
"""


def test_children_of_a_killed_process_end() -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, env=environment) as parent:
        assert parent.stdout is not None
        children = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(children) == 2
        assert all(map(is_running, children))
        parent.send_signal(signal.SIGKILL)
        end = time.monotonic() + 20
        while any(map(is_running, children)) and time.monotonic() < end:
            time.sleep(0.05)
    left = [pid for pid in children if is_running(pid)]
    for pid in left:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    assert not left


def is_running(pid: int) -> bool:
    """Return whether a process runs; one that nobody waited for does not."""
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
