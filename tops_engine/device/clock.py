"""Measuring the parts of a run, without making a GPU wait for the host while it works."""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Clock:
    """Adds up seconds under names. On CUDA it records events, which are read once, at the end."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._seconds: dict[str, float] = defaultdict(float)
        self._events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Count the enclosed work under ``name``."""
        if self._device.type == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            start.record(torch.cuda.current_stream(self._device))
            try:
                yield
            finally:
                end.record(torch.cuda.current_stream(self._device))
                self._events.append((name, start, end))
            return
        begun = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[name] += time.perf_counter() - begun

    def seconds(self, name: str) -> float:
        """Return the seconds counted under ``name`` so far; wait for the GPU."""
        if self._events:
            torch.cuda.synchronize(self._device)
            for counted, start, end in self._events:
                self._seconds[counted] += start.elapsed_time(end) / 1e3
            self._events.clear()
        return self._seconds[name]
