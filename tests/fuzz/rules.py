"""What holds for every input, however damaged: the product's own errors, short messages, an end in time, no growth."""

import ctypes
import gc
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import psutil

from tops_engine.errors import TopsError

#: Mutations of all parts together; `make fuzz` sets 10,000.
TOTAL = int(os.environ.get("TOPS_FUZZ", "250"))
#: Another number gives other mutations.
SEED = int(os.environ.get("TOPS_FUZZ_SEED", "0"))

#: What each part gets of all mutations.
SHARES = {
    "graphs": 0.15,
    "shipped workflows": 0.05,
    "prompts": 0.08,
    "workflow files": 0.04,
    "request bodies": 0.1,
    "addresses": 0.05,
    "uploads": 0.03,
    "pictures": 0.14,
    "conversations": 0.06,
    "LangChain messages": 0.08,
    "settings": 0.06,
    "fields": 0.04,
    "flags": 0.03,
    "schemas": 0.03,
    "tools": 0.02,
    "recipes": 0.02,
    "results files": 0.01,
    "calibration": 0.01,
}

#: How long threads call the engine at the same time; `make fuzz` takes ten minutes.
SECONDS_OF_THREADS = 600 if TOTAL >= 10_000 else 2

#: Seconds that a case may work, and that it may take on a busy machine.
MAX_SECONDS, MAX_WAIT = 5, 60
MAX_MESSAGE = 300
MAX_GROWTH = 200 * 2**20


class TookTooLong(BaseException):
    """A case ran for more than MAX_SECONDS; no code under test catches this."""


def seeds(part: str) -> range:
    """Return the seeds of a part, as many as its share of all mutations."""
    first = SEED * 1_000_000
    return range(first, first + max(1, round(TOTAL * SHARES[part])))


def survives(
    case: str, call: Callable[..., Any], *arguments: Any, check: Callable[[str, str], None] | None = None
) -> Any:
    """Call a function that may refuse its input, and return its result or None.

    It must end in time, and an error must be one of the product's, whose text passes ``check``: by default it is one
    sentence shorter than MAX_MESSAGE.
    """
    try:
        with _time_limit(case):
            return call(*arguments)
    except TopsError as error:
        (check or check_sentence)(str(error), case)
    except Exception as error:
        raise AssertionError(f"{case}: {type(error).__name__}: {str(error)[:300]}") from error
    return None


def check_sentence(message: str, case: str) -> None:
    """Check the text of an error of the engine: one line, and short."""
    assert len(message.splitlines()) == 1, f"{case}: not one line: {message[:400]!r}"
    check_message(message, case)


def check_message(message: str, case: str) -> None:
    """Check each line of what a caller is told."""
    assert message.strip(), f"{case}: an error without a message"
    for line in message.splitlines():
        assert len(line) < MAX_MESSAGE, f"{case}: a message of {len(line)} characters: {line[:400]}"


def memory_in_use() -> int:
    """Return the bytes of this process without what the allocator keeps of freed memory, more with each thread."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc has it
    if trim is not None:
        trim(0)
    return int(psutil.Process().memory_info().rss)


@contextmanager
def level_memory(case: str) -> Iterator[None]:
    """Check that the process is not much larger at the end than at the start."""
    before = memory_in_use()
    yield
    growth = memory_in_use() - before
    assert growth < MAX_GROWTH, f"{case}: the process grew by {growth / 2**20:.0f} MiB"


@contextmanager
def _time_limit(case: str) -> Iterator[None]:
    def stop(number: int, frame: FrameType | None) -> None:
        raise TookTooLong(f"{case}: more than {MAX_SECONDS} s of work, or {MAX_WAIT} s")

    # A busy machine is not a failure, so that the work of the process counts; waiting has a longer limit.
    timers = ((signal.SIGPROF, signal.ITIMER_PROF, MAX_SECONDS), (signal.SIGALRM, signal.ITIMER_REAL, MAX_WAIT))
    before = [(number, signal.signal(number, stop)) for number, _, _ in timers]
    try:
        for _, timer, seconds in timers:
            signal.setitimer(timer, seconds)
        yield
    finally:
        for _, timer, _ in timers:
            signal.setitimer(timer, 0)
        for number, handler in before:
            signal.signal(number, handler)
