"""The tables of docs/langchain.md about agents with pictures, made from the results of benchmarks."""

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"

#: The steps that the table of twenty shows.
STEPS = (1, 5, 10, 15, 20)


def answers() -> list[list[str]]:
    """Return the table of answers about old and new pictures, from ``benchmarks/agent_pictures.py``."""
    read: dict[str, Any] = json.loads((RESULTS / "agent_pictures.json").read_text())
    header = ["question about the picture that is", "right", "visual tokens"]
    rows = [
        [kind, f"{one['right']} of {one['asked']}", f"{one['visual_tokens']:.0f}"]
        for kind, one in read["results"].items()
    ]
    return [header, *rows]


def thin_model() -> list[list[str]]:
    """Return the table of steps of the thin Qwen2.5-VL, from ``benchmarks/screen_agent_shape.py``."""
    read: dict[str, Any] = json.loads((RESULTS / "screen_agent_shape.json").read_text())
    header = ["screenshots", "visual tokens", "with budget", "seconds", "with budget", "cache, MB", "with budget"]
    rows = []
    for step in (number for number in STEPS if number < len(read["without"])):
        pair = read["without"][step], read["with_budget"][step]
        tokens = [f"{one['visual_tokens']:.0f}" for one in pair]
        seconds = [f"{one['milliseconds'] / 1000:.1f}" for one in pair]
        cache = [f"{one['cache_kilobytes'] / 1024:.1f}" for one in pair]
        rows.append([str(step), *tokens, *seconds, *cache])
    return [header, *rows]
