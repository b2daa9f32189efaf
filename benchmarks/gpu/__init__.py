"""Measure the engine on a GPU in three calls of at most four minutes each: see ``python -m benchmarks.gpu --help``."""
