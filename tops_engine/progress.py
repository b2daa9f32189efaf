"""How long-running functions report their progress."""

from typing import Protocol


class Progress(Protocol):
    """Receive the progress of a long-running function.

    The command line passes a progress bar, nodes pass their host's progress. An exception raised by the call ends the
    function, so a caller can also use it to interrupt the work.
    """

    def __call__(self, done: int, total: int, /) -> None:
        """Report that ``done`` of ``total`` steps are finished."""


def no_progress(done: int, total: int, /) -> None:
    """Ignore the progress."""
