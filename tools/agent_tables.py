"""The tables of docs/langchain.md about agents with pictures, made from the results of benchmarks."""

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"


def answers() -> list[list[str]]:
    """Return the table of answers about old and new pictures, from ``benchmarks/agent_pictures.py``."""
    read: dict[str, Any] = json.loads((RESULTS / "agent_pictures.json").read_text())
    header = ["question about the picture that is", "right", "visual tokens"]
    rows = [
        [kind, f"{one['right']} of {one['asked']}", f"{one['visual_tokens']:.0f}"]
        for kind, one in read["results"].items()
    ]
    return [header, *rows]
