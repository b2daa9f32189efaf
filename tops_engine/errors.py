"""Every error a caller of the engine can meet: one clear sentence that says what was wrong and what to do.

All of them derive from :class:`TopsError`, and the engine stays usable after each. Messages that repeat a caller's
value pass it through :func:`shorten` or :func:`quote`, and what another library says through :func:`reason_of`: a
picture's data in a wrong place must not fill the screen.
"""

import os
from collections.abc import Iterable

#: Characters that a message repeats of a text or path, of a quoted value, of what another library says, and of a list.
MOST_SHOWN, MOST_QUOTED, MOST_OF_A_REASON, MOST_LISTED = 100, 50, 150, 200


class TopsError(Exception):
    """Base class of all errors this package raises on purpose."""


class InvalidInput(TopsError, ValueError):
    """A value the caller passed cannot be used (settings, tensors, messages, prompts)."""


class InvalidImage(InvalidInput):
    """An image is missing, unreadable, truncated, empty or too large to decode safely."""


class InvalidVideo(InvalidInput):
    """A video is missing, unreadable, without frames, or too large to decode safely."""


class BudgetError(InvalidInput):
    """A token budget that cannot be met."""


class ContextLengthError(InvalidInput):
    """A prompt that does not fit the model's context."""


class ModelNotFound(TopsError, FileNotFoundError):
    """The named checkpoint does not exist or is incomplete."""


class UnsupportedModel(TopsError, ValueError):
    """The checkpoint exists, but the engine (or the chosen method) cannot run it."""


class MissingDependency(TopsError, ImportError):
    """An optional package is needed for what was asked."""


class OutOfMemory(TopsError, MemoryError):
    """The device ran out of memory; what the request held has been freed."""


class ServerError(TopsError, ConnectionError):
    """The server that runs the model cannot be reached, refuses the caller, or failed."""


class ServerUnavailable(ServerError):
    """The server, or the proxy in front of several, says that it can take no requests now (status 503)."""


class ServerTimeout(ServerError, TimeoutError):
    """The server that runs the model did not answer in time."""


def shorten(value: object, most: int = MOST_SHOWN) -> str:
    """Return the text of a value for a message, on one line: whole, or its beginning, its end and its length.

    Parameters
    ----------
    most : characters up to which a text stays whole. A third of what is left of a longer one is its end, where a path
        names its file.
    """
    text = " ".join(str(value).split())
    if len(text) <= most:
        return text
    return f"{text[: most - most // 3]}...{text[-(most // 3) :]} ({len(text):,} characters)"


def quote(value: object) -> str:
    """Return the ``repr`` of a value for a message, cut as by :func:`shorten`; what may be a path is cut less."""
    may_be_path = isinstance(value, os.PathLike) or (isinstance(value, str) and value.startswith(("/", "~", ".")))
    try:
        return shorten(repr(value), MOST_SHOWN if may_be_path else MOST_QUOTED)
    except (RecursionError, ValueError):  # nested too deeply, or an integer of more than 4,300 digits
        return f"a value of the type {type(value).__name__}"


def listed(names: Iterable[object]) -> str:
    """Return names for a message, separated by commas: all, or the first ones and their number."""
    every = list(map(str, names))
    text = ", ".join(every)
    if len(text) <= MOST_LISTED:
        return text
    count = text[: MOST_LISTED * 3 // 4].count(", ")
    return f"{', '.join(every[:count])} ... ({len(every)} in all)"


def reason_of(error: object) -> str:
    """Return the first line of what a library says, for a message: without a full stop, cut as by :func:`shorten`."""
    first = str(error).strip().partition("\n")[0]
    return shorten(first, MOST_OF_A_REASON).rstrip(".:") or type(error).__name__
