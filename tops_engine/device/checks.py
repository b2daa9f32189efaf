"""Looking at values that lie on an accelerator when the host waits for it anyway."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import islice

import torch
from torch import Tensor

Verify = Callable[[list[int]], None]


class DeferredChecks:
    """Checks that wait for :meth:`settle`."""

    def __init__(self) -> None:
        self._facts: list[Tensor] = []
        self._checks: list[Verify] = []

    def add(self, facts: Tensor, verify: Verify) -> None:
        """Give ``verify`` the values of ``facts``, int64 or bool [n], later."""
        self._facts.append(facts)
        self._checks.append(verify)

    def settle(self) -> None:
        """Wait for the device once and make all checks; raises what the first of them raises."""
        facts, checks = self._facts, self._checks
        self._facts, self._checks = [], []
        if facts:
            values = iter(torch.cat(facts).tolist())
            for verify, piece in zip(checks, facts, strict=True):
                verify(list(islice(values, len(piece))))


_deferred: ContextVar[DeferredChecks | None] = ContextVar("deferred checks", default=None)


@contextmanager
def deferred_checks() -> Iterator[DeferredChecks]:
    """Collect the checks of values on accelerators while the block runs; whoever opens it settles them."""
    checks = DeferredChecks()
    before = _deferred.set(checks)
    try:
        yield checks
    finally:
        _deferred.reset(before)


def check(facts: Tensor, verify: Verify) -> None:
    """Give ``verify`` the values of ``facts``, int64 or bool [n]: now, or where the host waits for the device next."""
    checks = _deferred.get()
    if checks is None or facts.device.type == "cpu":
        verify(facts.tolist())
    else:
        checks.add(facts, verify)
