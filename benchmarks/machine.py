"""The machine of a benchmark, for its JSON."""

from tops_engine.device.machine import machine

__all__ = ["machine"]
