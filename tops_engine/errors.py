"""Every error a caller of the engine can meet: one clear sentence that says what was wrong and what to do.

All of them derive from :class:`TopsError`, and the engine stays usable after each.
"""


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
