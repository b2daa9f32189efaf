"""Every error a caller of the engine can meet: one clear sentence that says what was wrong and what to do.

All of them derive from :class:`TopsError`, and the engine stays usable after each. Messages that repeat a caller's
value pass it through :func:`shorten` or :func:`quote`: a picture's data in a wrong place must not fill the screen.
"""

#: Characters of a caller's value that a message repeats.
MOST_QUOTED = 100


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


class ServerTimeout(ServerError, TimeoutError):
    """The server that runs the model did not answer in time."""


def shorten(text: str) -> str:
    """Return a text for a message: whole, or its first ``MOST_QUOTED`` characters and its length if it is longer."""
    if len(text) <= MOST_QUOTED:
        return text
    return f"{text[:MOST_QUOTED]}... ({len(text):,} characters)"


def quote(value: object) -> str:
    """Return the ``repr`` of a value for a message, cut as by :func:`shorten`."""
    if isinstance(value, str | bytes) and len(value) > MOST_QUOTED:
        unit = "characters" if isinstance(value, str) else "bytes"
        return f"{value[:MOST_QUOTED]!r}... ({len(value):,} {unit})"
    return shorten(repr(value))
