"""Ask a server the same question about many pictures: many requests at once, and patience while it restarts."""

import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from typing import Any

from tops_engine.captioning.asking import Captioned, Picture, Question
from tops_engine.conversation.messages import user_message
from tops_engine.errors import InvalidInput, ServerError, ServerUnavailable
from tops_engine.remote import RemoteAnswer, RemoteEngine

#: Seconds between two checks whether the caller wants to stop.
TICK = 0.1

#: Seconds between two attempts to reach a server that does not answer: the first pause, doubled up to the longest.
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 20.0

#: Pauses in a row after which the caller is told.
SAID_AT = 2

#: So many failures of a server that answers again each time are the fault of the picture.
MOST_FAILURES = 3


def caption_in_flight(
    engine: RemoteEngine,
    pictures: Iterable[Picture],
    question: Question,
    at_once: int,
    patience: float = 0.0,
    on_wait: Callable[[], None] = lambda: None,
    say: Callable[[str], None] = lambda text: None,
) -> Iterator[Captioned]:
    """Ask with ``at_once`` requests at a time; yields pictures as they are answered, and holds no more of them.

    Closing the iterator cancels the requests.

    Parameters
    ----------
    patience : seconds without any answer for which a server that fails or cannot be reached is asked again.
    on_wait : called several times a second; an exception that it raises ends everything.
    say : is told when the server cannot be reached and when it answers again.

    Raises
    ------
    ServerError
        If the server has not answered for ``patience`` seconds.
    TopsError
        If the fault is not in a picture, such as a model that does not exist.
    """
    remaining = map(_Turn, pictures)
    again: deque[_Turn] = deque()
    running: dict[Future[RemoteAnswer], _Turn] = {}
    server = _Server(engine, patience, say)
    try:
        while True:
            while len(running) < server.room(at_once):
                turn = again.popleft() if again else next(remaining, None)
                if turn is None:
                    break
                message = user_message(question.prompt, turn.picture.source)
                running[engine.submit([message], question.pruning, question.generation)] = turn
            if not running and not again:
                return
            on_wait()
            for future in _finished(running):
                turn = running.pop(future)
                try:
                    answer = future.result()
                except InvalidInput as error:
                    yield Captioned(turn.picture.name, error=error)
                except ServerError as error:
                    server.failed(error)
                    # No server has read the picture if none is available.
                    turn.num_failures += not isinstance(error, ServerUnavailable)
                    if turn.num_failures >= MOST_FAILURES:
                        yield Captioned(turn.picture.name, error=error)
                    else:
                        again.append(turn)
                else:
                    server.answered()
                    yield Captioned.of(turn.picture.name, answer)
    finally:
        server.close()
        for future in running:
            future.cancel()


def _finished(running: Collection[Future[RemoteAnswer]]) -> Collection[Future[RemoteAnswer]]:
    """Return the finished requests, after ``TICK`` at the latest."""
    if running:
        return wait(running, TICK, FIRST_COMPLETED).done
    time.sleep(TICK)
    return ()


@dataclass
class _Turn:
    """A picture, and how often the server failed on it."""

    picture: Picture
    num_failures: int = 0


class _Server:
    """Whether the server answers, and how long to wait if it does not."""

    def __init__(self, engine: RemoteEngine, patience: float, say: Callable[[str], None]) -> None:
        self._engine, self._patience, self._say = engine, patience, say
        self._gone = False
        self._silent_since: float | None = None
        self._num_pauses, self._next = 0, 0.0
        self._attempt: Future[Any] | None = None

    def room(self, at_once: int) -> int:
        """Return how many requests may be under way."""
        if not self._gone:
            return at_once
        if self._attempt is None:
            if time.monotonic() < self._next:
                return 0
            self._attempt = self._engine.connecting()
        # A server that accepts the connection and says nothing must not keep the caller from stopping.
        if not self._attempt.done():
            return 0
        attempt, self._attempt = self._attempt, None
        try:
            attempt.result()
        except ServerError as error:
            self.failed(error)
            return 0
        self._gone = False
        return at_once

    def close(self) -> None:
        if self._attempt is not None:
            self._attempt.cancel()

    def answered(self) -> None:
        if self._num_pauses >= SAID_AT:
            self._say("The server answers again.")
        self._gone, self._silent_since, self._num_pauses = False, None, 0

    def failed(self, error: ServerError) -> None:
        """Pause, longer each time until there is an answer; raise the error after ``patience`` seconds."""
        now = time.monotonic()
        if self._silent_since is None:
            self._silent_since = now
        if now - self._silent_since >= self._patience:
            raise error
        self._gone = True
        if now >= self._next:  # not one of many that failed together
            self._next = now + min(FIRST_PAUSE * 2**self._num_pauses, LONGEST_PAUSE)
            self._num_pauses += 1
            if self._num_pauses == SAID_AT:
                self._say(f"{error} Waiting for it, for up to {self._patience:.0f} seconds.")
