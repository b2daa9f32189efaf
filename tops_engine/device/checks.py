"""Check values on an accelerator at a point where the host waits for it anyway."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import islice

import torch
from torch import Tensor

Verify = Callable[[list[int]], None]


class DeferredChecks:
    """Checks that are made when :meth:`settle` is called."""

    def __init__(self) -> None:
        self._facts: list[Tensor] = []
        self._checks: list[Verify] = []

    def add(self, facts: Tensor, verify: Verify) -> None:
        """Call ``verify`` with the values of ``facts``, int64 or bool [n], at :meth:`settle`."""
        self._facts.append(facts)
        self._checks.append(verify)

    def settle(self) -> None:
        """Wait for the device once and make all checks; the error of the first failing check is raised."""
        facts, checks = self._facts, self._checks
        self._facts, self._checks = [], []
        if facts:
            values = iter(torch.cat(facts).tolist())
            for verify, piece in zip(checks, facts, strict=True):
                verify(list(islice(values, len(piece))))


_deferred: ContextVar[DeferredChecks | None] = ContextVar("deferred checks", default=None)


@contextmanager
def deferred_checks() -> Iterator[DeferredChecks]:
    """Defer the checks of values on accelerators inside the block; the caller settles them afterwards."""
    checks = DeferredChecks()
    before = _deferred.set(checks)
    try:
        yield checks
    finally:
        _deferred.reset(before)


def check(facts: Tensor, verify: Verify) -> None:
    """Call ``verify`` with the values of ``facts``, int64 or bool [n], now or when deferred checks are settled."""
    checks = _deferred.get()
    if checks is None or facts.device.type == "cpu":
        verify(facts.tolist())
    else:
        checks.add(facts, verify)
