"""Run `tops` commands as separate processes that tests can stop."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import tops_engine


@contextmanager
def running_until(arguments: Sequence[object], path: Path, num_lines: int) -> Iterator["subprocess.Popen[bytes]"]:
    """Yield the running command when its output file has the given number of lines; end it after the block."""
    with subprocess.Popen(
        [sys.executable, "-m", "tops_engine.cli", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=Path(tops_engine.__file__).parents[1],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    ) as process:
        try:
            deadline = time.monotonic() + 120
            while not path.exists() or path.read_bytes().count(b"\n") < num_lines:
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.02)
            yield process
        finally:
            process.kill()
