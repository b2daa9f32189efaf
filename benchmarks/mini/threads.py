"""Choose the number of CPU threads while training, for a machine that also runs other programs.

Two threads wait for each other at every operation, so they become very slow when another program uses one of the two
cores; one thread does not. So the speed of both is measured repeatedly and the faster one is used.
"""

import time

import torch

RETRY = 25.0  # seconds with one thread before more are tried again
PATIENCE = 2  # slow steps in a row before the switch to one thread


class Threads:
    """Switch between one thread and ``most`` threads by the measured time for a unit of work."""

    def __init__(self, most: int):
        self.most, self.now, self.slow = most, 1, 0
        self.single: float | None = None
        self.changed = time.monotonic()
        self.wait = 5.0
        torch.set_num_threads(1)

    def report(self, seconds: float, work: float) -> None:
        """Record the time of a step of ``work`` units, and set the number of threads for the next step."""
        pace = seconds / work
        if self.now == 1:
            self.single = pace if self.single is None else 0.8 * self.single + 0.2 * pace
            if self.most > 1 and time.monotonic() - self.changed > self.wait:
                self._use(self.most)
        elif self.single is not None:
            self.slow = self.slow + 1 if pace > 1.05 * self.single else max(0, self.slow - 1)
            if self.slow >= PATIENCE:
                self.wait = RETRY
                self._use(1)

    def _use(self, number: int) -> None:
        self.now, self.slow, self.changed = number, 0, time.monotonic()
        torch.set_num_threads(number)
