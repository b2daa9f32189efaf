"""Calls that come together are answered together: one batch on the engine in place of many single runs.

LangChain runs a batch as single calls side by side, each with its callbacks, cache and retries. Here every call takes a
seat; what it asks waits until all others have asked too, or have left without asking (a cache hit, an error), and
then all are answered in one go.
"""

import asyncio
import threading
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any, NamedTuple, cast

from langchain_core.language_models import LanguageModelInput
from langchain_core.messages import AIMessage
from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import get_config_list, get_executor_for_config

from langchain_tops.results import AnyAnswer
from langchain_tops.server import RemoteSettings
from langchain_tops.settings import Settings
from tops_engine.errors import TopsError

# Calls that go to the engine together when the caller sets no max_concurrency.
BATCH_SIZE = 8

Configs = RunnableConfig | Sequence[RunnableConfig] | None


class Request(NamedTuple):
    """What one call asks, with everything that has to be equal to be asked together."""

    settings: Settings | RemoteSettings
    tools: Any
    messages: list[dict[str, Any]]


Answering = Callable[[Sequence[Request], threading.Event], Sequence[AnyAnswer]]

_seat: ContextVar["Seat | None"] = ContextVar("seat", default=None)


class Table:
    """Calls that wait for each other.

    Args:
        num_seats: How many calls there are.
    """

    def __init__(self, num_seats: int) -> None:
        self._lock = threading.Lock()
        self._num_missing = num_seats
        self._waiting: list[tuple[Request, Future[AnyAnswer]]] = []
        self._num_cancelled = 0
        self._cancel = threading.Event()
        self._answering: Answering | None = None

    @contextmanager
    def seat(self) -> Iterator[None]:
        """One call's place, for as long as it runs."""
        seat = Seat(self)
        token = _seat.set(seat)
        try:
            yield
        finally:
            _seat.reset(token)
            seat.leave()

    def ask(self, request: Request, answering: Answering) -> Future[AnyAnswer]:
        """Add a request; it is answered when nobody is missing any more."""
        future: Future[AnyAnswer] = Future()
        with self._lock:
            self._waiting.append((request, future))
            self._answering = answering
        self.arrived()
        return future

    def arrived(self) -> None:
        """One call less to wait for."""
        with self._lock:
            self._num_missing -= 1
            ready = self._num_missing == 0 and self._waiting and self._answering is not None
        if ready:
            # In a thread of its own: the last to arrive may be an event loop.
            threading.Thread(target=self._answer, name="tops-batch", daemon=True).start()

    def cancel_one(self) -> None:
        """One asker is gone; when all are, nothing more is written."""
        with self._lock:
            self._num_cancelled += 1
            if self._num_cancelled == len(self._waiting):
                self._cancel.set()

    @contextmanager
    def abandoned_on_error(self) -> Iterator[None]:
        """Write nothing more once what waits for the answers fails, such as when it is interrupted."""
        try:
            yield
        except BaseException:
            self._cancel.set()
            raise

    def _answer(self) -> None:
        groups: dict[str, list[tuple[Request, Future[AnyAnswer]]]] = defaultdict(list)
        for request, future in self._waiting:
            if not future.set_running_or_notify_cancel():
                continue
            groups[repr((request.settings, request.tools))].append((request, future))
        assert self._answering is not None
        for group in groups.values():
            answer_together(group, self._answering, self._cancel)


def answer_together(
    group: Sequence[tuple[Request, "Future[AnyAnswer]"]], answering: Answering, cancel: threading.Event
) -> None:
    """Answer requests that have the same settings; what one of them does wrong is not the others' error."""
    try:
        answers = answering([request for request, _ in group], cancel)
    except TopsError as error:
        if len(group) == 1:
            group[0][1].set_exception(error)
            return
        for one in group:
            answer_together([one], answering, cancel)
    except BaseException as error:
        for _, future in group:
            future.set_exception(error)
    else:
        for (_, future), answer in zip(group, answers, strict=True):
            future.set_result(answer)


class Seat:
    """One call's place at a table. It asks at most once; a second question (a retry) is asked alone."""

    def __init__(self, table: Table) -> None:
        self.table = table
        self._used = False

    def take(self) -> bool:
        """Whether this is the first use."""
        first, self._used = not self._used, True
        return first

    def leave(self) -> None:
        """Nobody need wait for this call."""
        if self.take():
            self.table.arrived()


def current_seat() -> Seat | None:
    """The seat of the running call, if it is part of a batch."""
    return _seat.get()


def batch_together(
    invoke: Callable[[LanguageModelInput, RunnableConfig], AIMessage],
    inputs: Sequence[LanguageModelInput],
    config: Configs,
    return_exceptions: bool,
) -> list[AIMessage]:
    """Single calls side by side, answered together, ``max_concurrency`` (of the config, else 8) at a time."""

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
    """As :func:`batch_together`."""

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
    """Inputs that go to the engine together, with their configs."""
    if not inputs:
        return
    configs = get_config_list(config, len(inputs))
    size = configs[0].get("max_concurrency") or BATCH_SIZE
    for start in range(0, len(inputs), size):
        yield inputs[start : start + size], configs[start : start + size]
