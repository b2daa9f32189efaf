"""Calls of one batch are answered together: one run on the engine instead of many single runs.

LangChain runs a batch as single calls side by side, each with its callbacks, cache and retries. Here each call takes a
seat at a table. What it asks waits until all other calls have asked too, or have left without asking (a cache hit, an
error); then all are answered in one run.
"""

import asyncio
import threading
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import cast

from langchain_core.language_models import LanguageModelInput
from langchain_core.messages import AIMessage
from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import get_config_list, get_executor_for_config

from tops_engine.answers.base import BaseAnswer
from tops_engine.contract import Request
from tops_engine.engine import Engine
from tops_engine.errors import TopsError

# How many calls are answered together if the caller sets no max_concurrency.
BATCH_SIZE = 8

Configs = RunnableConfig | Sequence[RunnableConfig] | None


Waiting = tuple[Request, "Future[BaseAnswer]"]

_seat: ContextVar["Seat | None"] = ContextVar("seat", default=None)


class Table:
    """The calls of a batch, which wait for each other.

    Args:
        num_seats: The number of calls.
    """

    def __init__(self, num_seats: int) -> None:
        self._lock = threading.Lock()
        self._num_missing = num_seats
        self._waiting: list[tuple[Engine, Waiting]] = []
        self._num_cancelled = 0
        self._cancel = threading.Event()

    @contextmanager
    def seat(self) -> Iterator[None]:
        """Give a call a seat for as long as it runs."""
        seat = Seat(self)
        token = _seat.set(seat)
        try:
            yield
        finally:
            _seat.reset(token)
            seat.leave()

    def ask(self, engine: Engine, request: Request) -> Future[BaseAnswer]:
        """Add a request; it is answered when no call is missing any more."""
        future: Future[BaseAnswer] = Future()
        with self._lock:
            self._waiting.append((engine, (request, future)))
        self.arrived()
        return future

    def arrived(self) -> None:
        """Wait for one call less; answer if it was the last."""
        with self._lock:
            self._num_missing -= 1
            ready = self._num_missing == 0 and self._waiting
        if ready:
            # A thread of its own, because the last call may run in an event loop.
            threading.Thread(target=self._answer, name="tops-batch", daemon=True).start()

    def cancel_one(self) -> None:
        """Note that one caller has gone; the writing stops when all have."""
        with self._lock:
            self._num_cancelled += 1
            if self._num_cancelled == len(self._waiting):
                self._cancel.set()

    @contextmanager
    def abandoned_on_error(self) -> Iterator[None]:
        """Stop the writing if the code that waits for the answers fails, for instance because it is interrupted."""
        try:
            yield
        except BaseException:
            self._cancel.set()
            raise

    def _answer(self) -> None:
        groups: dict[tuple[Engine, str], list[Waiting]] = defaultdict(list)
        for engine, (request, future) in self._waiting:
            if future.set_running_or_notify_cancel():
                settings = repr((request.pruning, request.generation, request.tools))
                groups[engine, settings].append((request, future))
        for (engine, _), group in groups.items():
            answer_together(engine, group, self._cancel)


def answer_together(engine: Engine, group: Sequence[Waiting], cancel: threading.Event) -> None:
    """Answer requests that have the same settings; if one of them fails, each of them alone."""
    try:
        answers = engine.run([request for request, _ in group], cancel)
    except TopsError as error:
        if len(group) == 1:
            group[0][1].set_exception(error)
            return
        for one in group:
            answer_together(engine, [one], cancel)
    except BaseException as error:
        for _, future in group:
            future.set_exception(error)
    else:
        for (_, future), answer in zip(group, answers, strict=True):
            future.set_result(answer)


class Seat:
    """The place of a call at a table. It asks the table at most once; a second question (a retry) is asked alone."""

    def __init__(self, table: Table) -> None:
        self.table = table
        self._used = False

    def take(self) -> bool:
        """Take the seat; return whether this is its first use."""
        first, self._used = not self._used, True
        return first

    def leave(self) -> None:
        """Tell the table not to wait for this call any longer."""
        if self.take():
            self.table.arrived()


def current_seat() -> Seat | None:
    """Return the seat of the running call, None outside of a batch."""
    return _seat.get()


def leave_seat() -> None:
    """Let the batch of the running call, if there is one, not wait for it."""
    if (seat := current_seat()) is not None:
        seat.leave()


def batch_together(
    invoke: Callable[[LanguageModelInput, RunnableConfig], AIMessage],
    inputs: Sequence[LanguageModelInput],
    config: Configs,
    return_exceptions: bool,
) -> list[AIMessage]:
    """Run single calls side by side and answer ``max_concurrency`` (of the config, else 8) of them in one run."""

    def call(table: Table, value: LanguageModelInput, config: RunnableConfig) -> AIMessage:
        with table.seat():
            try:
                return invoke(value, config)
            except Exception as error:
                if return_exceptions:
                    return cast("AIMessage", error)
                raise

    answers: list[AIMessage] = []
    for part, configs in _parts(inputs, config):
        table = Table(len(part))
        limits = RunnableConfig(max_concurrency=len(part))
        with get_executor_for_config(limits) as executor, table.abandoned_on_error():
            answers += executor.map(partial(call, table), part, configs)
    return answers


async def abatch_together(
    invoke: Callable[[LanguageModelInput, RunnableConfig], Awaitable[AIMessage]],
    inputs: Sequence[LanguageModelInput],
    config: Configs,
    return_exceptions: bool,
) -> list[AIMessage]:
    """Run single calls side by side in an event loop; as :func:`batch_together`."""

    async def call(table: Table, value: LanguageModelInput, config: RunnableConfig) -> AIMessage:
        with table.seat():
            try:
                return await invoke(value, config)
            except Exception as error:
                if return_exceptions:
                    return cast("AIMessage", error)
                raise

    answers: list[AIMessage] = []
    for part, configs in _parts(inputs, config):
        table = Table(len(part))
        with table.abandoned_on_error():
            answers += await asyncio.gather(*map(partial(call, table), part, configs))
    return answers


def _parts(
    inputs: Sequence[LanguageModelInput], config: Configs
) -> Iterator[tuple[Sequence[LanguageModelInput], list[RunnableConfig]]]:
    """Yield the inputs that are answered together, with their configs."""
    if not inputs:
        return
    configs = get_config_list(config, len(inputs))
    size = configs[0].get("max_concurrency") or BATCH_SIZE
    for start in range(0, len(inputs), size):
        yield inputs[start : start + size], configs[start : start + size]
